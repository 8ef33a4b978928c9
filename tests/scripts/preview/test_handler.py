import functools

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import MapLabelValued

from scripts.common.errors import InputError
from scripts.preview.gif import slice_gif
from scripts.preview.handler import PreviewSaver
from scripts.preview.png import preview_png
from tests.scripts.preview.small_ct import NAMES, ct, oblique_affine, organs, pixels, ras_affine

pytestmark = pytest.mark.usefixtures("small_pictures")


def run_saver(saver, batch_item, output_item):
    """Run the handler on one case, or on a failed one if `batch_item` is None."""

    def step(engine, _):
        failed = batch_item is None
        engine.state.batch, engine.state.output = ([], []) if failed else ([batch_item], [output_item])
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    saver.attach(engine)
    engine.run([0], max_epochs=1)


def save_preview(folder, *, affine, image_affine=None, label=None, batch_label=None, **options):
    """Run the handler on a case whose engine image is a preprocessed one; return the folder of the pictures."""
    nib.save(nib.Nifti1Image(ct(), affine if image_affine is None else image_affine), folder / "ct.nii.gz")
    image = MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": str(folder / "ct.nii.gz")})
    pred = MetaTensor(torch.from_numpy(organs())[None], affine=torch.as_tensor(affine))
    batch_item = {"case": "p1", "image": image, "label": batch_label}
    run_saver(PreviewSaver(folder / "out", NAMES, **options), batch_item, {"pred": pred, "label": label})
    return folder / "out"


def expected_png(folder, *, affine, **options):
    preview_png(ct(), organs(), folder / "expected.png", affine=affine, class_names=NAMES, title="p1", **options)
    return pixels(folder / "expected.png")


def test_original_image_is_drawn_with_prediction_and_label(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.preview.handler.slice_gif", functools.partial(slice_gif, max_panel_px=40))
    label = MetaTensor(torch.from_numpy(organs())[None].float(), affine=torch.as_tensor(oblique_affine()))
    out = save_preview(tmp_path, affine=oblique_affine(), label=label, gif="true")
    assert sorted(path.name for path in out.iterdir()) == ["p1.gif", "p1_preview.png"]
    assert np.array_equal(
        pixels(out / "p1_preview.png"), expected_png(tmp_path, affine=oblique_affine(), label=organs())
    )


def test_gif_is_written_only_if_wanted(tmp_path):
    out = save_preview(tmp_path, affine=ras_affine(), gif="false")
    assert [path.name for path in out.iterdir()] == ["p1_preview.png"]


def test_label_is_read_from_the_path_in_the_datalist(tmp_path):
    nib.save(nib.Nifti1Image(organs(), oblique_affine()), tmp_path / "label.nii.gz")
    out = save_preview(tmp_path, affine=oblique_affine(), batch_label=str(tmp_path / "label.nii.gz"))
    assert np.array_equal(
        pixels(out / "p1_preview.png"), expected_png(tmp_path, affine=oblique_affine(), label=organs())
    )


def test_label_of_another_numbering_is_transformed_before_it_is_drawn(tmp_path):
    other = np.where(organs() == 2, 7, organs())
    nib.save(nib.Nifti1Image(other.astype(np.uint8), ras_affine()), tmp_path / "label.nii.gz")
    transform = MapLabelValued("label", [7], [2])
    path = str(tmp_path / "label.nii.gz")
    out = save_preview(tmp_path, affine=ras_affine(), batch_label=path, label_transform=transform)
    assert np.array_equal(pixels(out / "p1_preview.png"), expected_png(tmp_path, affine=ras_affine(), label=organs()))


def test_label_on_another_grid_is_left_out(tmp_path):
    label = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4))
    out = save_preview(tmp_path, affine=ras_affine(), label=label)
    assert np.array_equal(pixels(out / "p1_preview.png"), expected_png(tmp_path, affine=ras_affine()))


def test_window_is_passed_on(tmp_path):
    out = save_preview(tmp_path, affine=ras_affine(), window=None)
    assert np.array_equal(pixels(out / "p1_preview.png"), expected_png(tmp_path, affine=ras_affine(), window=None))


def test_failed_case_has_no_picture(tmp_path):
    run_saver(PreviewSaver(tmp_path / "out", NAMES), None, None)
    assert not (tmp_path / "out").exists()


def test_prediction_on_another_grid_than_its_image_is_refused(tmp_path):
    shifted = ras_affine() + np.eye(4, k=3) * 5
    message = r"^segmented, but not drawn: p1: the image does not lie on the grid of the prediction: centre 5\.0"
    with pytest.raises(InputError, match=message):
        save_preview(tmp_path, affine=ras_affine(), image_affine=shifted)


def test_image_without_a_file_is_refused():
    pred = MetaTensor(torch.from_numpy(organs())[None])
    with pytest.raises(InputError, match=r'not drawn: p1: "image" does not name its file: load it with LoadVolumed\.$'):
        run_saver(PreviewSaver("out", NAMES), {"case": "p1", "image": torch.zeros(1, 2, 2, 2)}, {"pred": pred})
