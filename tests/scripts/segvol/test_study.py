import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.io.loading import LoadVolumed
from scripts.segvol.frames import place
from scripts.segvol.study import COLUMNS, MEAN, PromptStudy, summarise
from scripts.segvol.transforms import OrientSlicesFirstd
from tests.scripts.models.tiny_networks import tiny_segvol

KEYS = ["image", "label"]
NAMES = {1: "liver", 3: "aorta"}


class FromPrompt:
    """In place of the network: the box itself, the voxels of positive points, or of a text nothing."""

    def segment(self, image, network, prompts):
        (prompt,) = prompts
        shape = tuple(image.shape[2:])
        affines = [np.asarray(m).reshape(-1, 4, 4)[0] for m in (image.meta["original_affine"], image.affine)]
        file = Grid(tuple(int(n) for n in image.meta["spatial_shape"]), affines[0])
        at = place(prompt, file=file, working=Grid(shape, affines[1]))
        found = torch.zeros(1, 1, *shape, dtype=torch.uint8)
        if at.box is not None:
            found[(0, 0, *(slice(a, b + 1) for a, b in zip(at.box[:3], at.box[3:], strict=True)))] = 255
        for point in at.points[at.labels == 1]:
            found[(0, 0, *point)] = 255
        return found


@pytest.fixture
def cases(tmp_path):
    """An organ that is a box of 4 x 3 x 2 voxels, and one of a single voxel; not RAS, and tilted."""
    label = np.zeros((12, 10, 8), dtype=np.uint8)
    label[3:7, 2:5, 4:6], label[10, 8, 1] = 1, 3
    affine = nib.affines.from_matvec(np.array([[0.0, 0.1, 3], [2, 0.3, 0], [-0.3, -2, 0]]), [5, 6, 7])
    files = {}
    for key, values in (("image", label.astype(np.float32)), ("label", label)):
        files[key] = str(tmp_path / f"{key}.nii.gz")
        nib.save(nib.Nifti1Image(values, affine), files[key])
    return [{"case": "a", **files}]


def study(cases, folder, **options):
    network = tiny_segvol()
    torch.save(network.state_dict(), folder / "model.pt")
    given = {"cases": cases, "transform": Compose([LoadVolumed(KEYS), OrientSlicesFirstd(KEYS)]), "network": network}
    given |= {"inferer": FromPrompt(), "class_names": NAMES, "ckpt_path": folder / "model.pt"}
    return PromptStudy(**given, output_dir=folder / "out", **options)


def test_prompts_reach_the_voxels_of_the_label(cases, tmp_path):
    study(cases, tmp_path, clicks=[1, 3], jitter=[0.5]).run()
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert tuple(scores.columns) == COLUMNS
    dice = scores.set_index(["organ", "prompt", "clicks", "jitter"])["dice"]
    assert dice["liver", "box", 0, 0] == dice["liver", "box+text", 0, 0] == 1
    assert dice["aorta", "box", 0, 0] == dice["aorta", "points", 0, 0] == 1
    assert dice["liver", "text", 0, 0] == 0
    assert dice["liver", "points", 0, 0] == pytest.approx(2 * 4 / (4 + 24), abs=1e-5)
    assert dice["liver", "box", 0, 0.5] < 1
    assert dice["liver", "clicks", 1, 0] == pytest.approx(2 / 25, abs=1e-5)
    assert dice["liver", "clicks", 3, 0] == pytest.approx(6 / 27, abs=1e-5)
    assert (tmp_path / "out" / "prompts.png").is_file()


def test_refused_prompt_finds_nothing(cases, tmp_path, caplog):
    class Refusing(FromPrompt):
        def segment(self, image, network, prompts):
            if prompts[0].points:
                raise InputError("liver: all its points lie on air; move them onto the structure.")
            return super().segment(image, network, prompts)

    one = study(cases, tmp_path, clicks=[1], jitter=[])
    one.inferer = Refusing()
    summary = one.run().set_index(["organ", "prompt"])["dice"]
    assert summary["liver", "box"] == 1
    assert summary["liver", "points"] == summary["liver", "clicks"] == 0
    assert "all its points lie on air" in caplog.text


def test_mean_is_that_of_the_organs_not_of_the_masks():
    rows = [("a", "liver", "box", 0, 0.0, 1.0), ("b", "liver", "box", 0, 0.0, 0.8), ("a", "aorta", "box", 0, 0.0, 0.1)]
    summary = summarise(pd.DataFrame(rows, columns=COLUMNS)).set_index("organ")
    assert summary.loc[MEAN, "dice"] == pytest.approx((0.9 + 0.1) / 2)
    assert summary.loc[MEAN, "n"] == 3


def test_wrong_settings_and_cases_without_organs_are_refused(cases, tmp_path):
    with pytest.raises(InputError, match=r"clicks is \[0\]"):
        study(cases, tmp_path, clicks=[0])
    with pytest.raises(InputError, match=r"jitter \[0\]"):
        study(cases, tmp_path, jitter=[0])
    with pytest.raises(InputError, match="no label shows an organ"):
        study([], tmp_path).run()
