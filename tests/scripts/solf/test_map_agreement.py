import json
import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from monai.data import Dataset
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.io.writing import SaveLabelMapd
from scripts.solf import map_agreement
from scripts.solf.map_agreement import MapComparer
from scripts.solf.tables import unpack
from scripts.solf.transforms import LoadLabelMapd
from tests.scripts.solf.conftest import AFFINE, small_map


@pytest.fixture
def pair(tmp_path):
    """Write two maps of a person and return the case."""

    def write(first, other, name="p1", affine=AFFINE):
        for folder, label, grid in (("first", first, AFFINE), ("other", other, affine)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(label, grid), tmp_path / folder / f"{name}.nii.gz")
        paths = {
            key: str(tmp_path / folder / f"{name}.nii.gz") for key, folder in (("image", "first"), ("label", "other"))
        }
        return {"case": name, **paths}

    return write


@pytest.fixture
def comparer(tmp_path):
    def make(cases, **options):
        dataset = Dataset(cases, Compose([LoadLabelMapd("image"), LoadLabelMapd("label")]))
        saved = SaveLabelMapd("pred", output_dir=tmp_path / "out", postfix="consensus")
        return MapComparer(
            dataset=dataset, postprocessing=saved, output_dir=tmp_path / "out", **{"workers": 0, **options}
        )

    return make


@pytest.fixture
def compared(monkeypatch):
    """Count the pairs of maps that are compared."""
    calls, original = [], map_agreement.organ_scores
    monkeypatch.setattr(
        map_agreement, "organ_scores", lambda *args, **named: calls.append(1) or original(*args, **named)
    )
    return calls


def boxes():
    """Two maps: label 1 alike, 2 shifted by half its length, 3 in the first alone, 5 in the other alone."""
    first, other = np.zeros((2, 20, 20, 20), np.uint8)
    first[1:5, 1:5, 1:5] = other[1:5, 1:5, 1:5] = 1
    first[8:12, 8:12, 8:12] = 2
    other[10:14, 8:12, 8:12] = 2
    first[1:4, 15:18, 15:18] = 3
    other[15:18, 15:18, 1:4] = 5
    return first, other


def test_decisions_and_scores_of_maps_made_by_hand(pair, comparer, tmp_path):
    comparer([pair(*boxes())], min_dice=0.6).run()
    table = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False).set_index("label")
    assert table["decision"].to_dict() == {1: "keep", 2: "reject", 3: "reject", 5: "missing"}
    assert table["dice"].astype(float).to_dict() == {1: 1, 2: 0.5, 3: 0, 5: 0}
    assert table["reason"].to_dict() == {
        1: "",
        2: "Dice 0.5 with the other map below 0.6",
        3: "the other map lacks it",
        5: "the other map has 2.16 ml of it",
    }
    assert float(table["volume_ml"][2]) == pytest.approx(64 * 80 / 1000)
    assert float(table["hd95_mm"][2]) == 8.0
    assert pd.read_parquet(tmp_path / "out" / "decisions.parquet")["votes"].tolist() == [0, 1, 1, 0]
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("organ")
    assert summary.loc["kidney_right", "mean_dice"] == 0.5
    assert summary.loc[["liver", "kidney_left"], ["n_missed", "n_spurious"]].to_numpy().tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(("min_dice", "kept"), [(0.6, False), (0.4, True)])
def test_consensus_has_what_both_maps_have_and_ignores_the_rest(pair, comparer, tmp_path, min_dice, kept):
    first, other = boxes()
    comparer([pair(first, other)], min_dice=min_dice).run()
    image = nib.load(tmp_path / "out" / "p1_consensus.nii.gz")
    expected = np.where(first == other, first, 255)
    if not kept:
        expected[first == 2] = 255
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.get_data_dtype() == np.uint8


def test_other_grid_fails_the_case_alone_and_removes_its_earlier_consensus(pair, comparer, tmp_path):
    good, bad = pair(*boxes(), "good"), pair(*boxes(), "bad")
    comparer([good, bad]).run()
    assert (tmp_path / "out" / "bad_consensus.nii.gz").is_file()
    bad = pair(*boxes(), "bad", affine=np.diag([4.0, 4.0, 6.0, 1.0]))
    run = comparer([good, bad])
    run.run()
    assert list(run.failures) == ["bad"]
    assert "other/bad.nii.gz: lies on another grid than" in run.failures["bad"]
    assert "spacing 4 x 4 x 6 instead of 4 x 4 x 5 mm" in run.failures["bad"]
    assert not (tmp_path / "out" / "bad_consensus.nii.gz").exists()
    assert set(pd.read_csv(tmp_path / "out" / "decisions.csv")["case"]) == {"good"}
    with pytest.raises(SystemExit, match="1 of 2 cases failed:"):
        run.exit_if_failed()


def test_case_is_compared_again_if_either_map_or_a_setting_changed(pair, comparer, compared, tmp_path):
    cases = [pair(small_map(n), small_map(n + 10), f"p{n}") for n in range(3)]
    comparer(cases).run()
    comparer(cases).run()
    assert len(compared) == 3
    os.utime(cases[0]["label"], (9, 9))
    comparer(cases).run()
    assert len(compared) == 4
    os.utime(cases[1]["image"], (9, 9))
    (tmp_path / "out" / "p2_consensus.nii.gz").unlink()
    comparer(cases).run()
    assert len(compared) == 6
    comparer(cases, min_dice=0.5).run()
    assert len(compared) == 9


def test_worker_processes_write_the_same_bytes(pair, comparer, tmp_path):
    cases = [pair(small_map(n), small_map(n + 10), f"p{n}") for n in range(2)]
    found = []
    for workers in (0, 2):
        comparer(cases, workers=workers).run()
        found.append(
            {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".sqlite"}
        )
        (tmp_path / "out" / "journal.sqlite").unlink()
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_missing_maps_and_bad_settings_are_refused(pair, comparer):
    case = pair(*boxes())
    with pytest.raises(InputError, match=r"p1: has no other label map; set other to a folder of maps with the same"):
        comparer([{"case": "p1", "image": case["image"]}])
    with pytest.raises(InputError, match=r"min_dice is 1\.5: give a number from 0 to 1"):
        comparer([case], min_dice=1.5)


def test_voxels_that_one_map_ignores_are_not_scored_and_stay_ignored(pair, tmp_path):
    first, other = boxes()
    other[1:5, 1:5, 1:3] = 255

    def transform(case):
        arrays = {key: np.asarray(nib.load(case[key]).dataobj) for key in ("image", "label")}
        meta = {"filename_or_obj": case["image"], "case": case["case"], "sources": ""}
        return {key: map_agreement.MetaTensor(array[None], affine=AFFINE, meta=meta) for key, array in arrays.items()}

    saved = SaveLabelMapd("pred", output_dir=tmp_path, postfix="consensus")
    case, organs = pair(first, other), {1: "a", 2: "b", 3: "c", 5: "d"}
    settings = {"organs": organs, "ignore_id": 255, "min_dice": 0.4, "postprocessing": saved}
    payload = map_agreement.compare_case(case, transform=transform, **settings)
    assert [row["dice"] for row in json.loads(unpack(payload).content)] == [1, 0.5, 0, 0]
    consensus = np.asarray(nib.load(tmp_path / "p1_consensus.nii.gz").dataobj)
    assert (consensus[1:5, 1:5, 1:3] == 255).all()
    assert (consensus[1:5, 1:5, 3:5] == 1).all()
