import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from scripts.universeg.preview import EXAMPLE_PX, GAP_PX, SupportPreviewSaver
from scripts.universeg.support import SupportSet
from tests.scripts.preview.test_handler import run_saver
from tests.scripts.universeg.support_files import transform, write_pictures, write_volume


def saved_preview(tmp_path, support, image, pred, *, label=None, affine=None, **options):
    saver = SupportPreviewSaver(
        support=support, output_dir=tmp_path / "out", class_names=support.class_names, **options
    )
    affine = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(affine)
    meta = {"filename_or_obj": str(image)}
    item = {"case": "p1", "image": MetaTensor(torch.zeros(1, 2, 2, 1), meta=meta)}
    item |= {"label": str(label)} if label else {}
    run_saver(saver, item, {"pred": MetaTensor(pred, affine=affine)})
    return np.asarray(Image.open(tmp_path / "out" / "p1_preview.png"))


def test_picture_of_a_picture_shows_examples_above_and_the_prediction_below(tmp_path):
    support = SupportSet(write_pictures(tmp_path / "in", n=3), transform())
    pred = torch.zeros(1, 24, 20, 1)
    pred[0, 5:20, 5:15] = 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    drawn = saved_preview(tmp_path, support, tmp_path / "in" / "images" / "p0.png", pred, affine=affine)
    colour = np.ptp(drawn.astype(int), axis=-1) > 60
    above, below = colour[:EXAMPLE_PX], colour[EXAMPLE_PX + 30 :]
    width = EXAMPLE_PX + GAP_PX
    assert all(above[:, n * width : (n + 1) * width - GAP_PX].any() for n in range(3))
    assert below.any()
    half = below.shape[1] // 2
    assert not below[:, : half - 20].any()  # the image without prediction


def test_reference_is_drawn_with_the_classes_of_the_support(tmp_path):
    """Its file holds the ids 3 and 9, of which the support knows one."""
    folder, image, _ = write_volume(tmp_path / "in", labelled=(1,), class_of=lambda z: 3)
    values = np.zeros((20, 24, 6), dtype=np.uint8)
    values[2:8, 2:8, 3], values[10:, 10:, 3] = 3, 9
    affine = nib.load(image).affine
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "label.nii.gz")
    support, pred = SupportSet(folder, transform()), torch.zeros(1, 20, 24, 6)
    with_label = saved_preview(tmp_path, support, image, pred, label=tmp_path / "label.nii.gz", affine=affine)
    without = saved_preview(tmp_path, support, image, pred, affine=affine)
    assert with_label.shape[1] > without.shape[1]


def test_gif_of_a_volume_is_written_if_wanted(tmp_path):
    folder, image, _ = write_volume(tmp_path / "in")
    affine = nib.load(image).affine
    support = SupportSet(folder, transform())
    saved_preview(tmp_path, support, image, torch.ones(1, 20, 24, 6), affine=affine, gif=True, plane="coronal")
    assert (tmp_path / "out" / "p1.gif").is_file()
