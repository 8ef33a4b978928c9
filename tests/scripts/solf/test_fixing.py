import json
import logging
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS as NAMES
from scripts.solf.fixing import FixLabelsd, add_fixed, changes_of
from scripts.solf.report.crops import CropFolder
from scripts.solf.transforms import LoadLabelMapd, ShapeFeaturesd
from scripts.solf.verdicts import add_verdicts, read_verdicts
from tests.scripts.solf.conftest import AFFINE, small_map

ORGANS = {label: NAMES[label] for label in (66, 2, 3)}
OBLIQUE = nib.affines.from_matvec(
    np.array([[3.9, 0.3, 0.1], [-0.3, 4.0, 0.2], [0.05, -0.2, 5.0]]), [-81.5, 33.25, -700]
)
LIA = nib.affines.from_matvec(np.array([[-4.0, 0, 0], [0, 0, 4], [0, -5, 0]]), [80, -60, 90])
HALF = small_map(5, half=[2])
WHOLE = np.where(np.arange(HALF.shape[2]) < 18, small_map(5), HALF)  # as far as the crop reaches


@pytest.fixture
def fixed(tmp_path):
    """Folder of fixed files with the crop of the right kidney of s05, of which half is missing."""
    folder = tmp_path / "fixed"
    CropFolder(folder, ORGANS).write("s05", 2, HALF, AFFINE, image=None)
    return folder


def edit(path, change):
    """Change the voxels of a file as an editor does: the function gets and may return an array."""
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    changed = change(array)
    nib.save(nib.Nifti1Image(array if changed is None else changed, image.affine, image.header), path)


def place_in(path, affine=AFFINE):
    """Return the box of a crop in the map that it was cut from."""
    image = nib.load(path)
    first = np.round(np.linalg.inv(affine) @ image.affine[:, 3])[:3].astype(int)
    return tuple(slice(low, low + size) for low, size in zip(first, image.shape, strict=True))


def repair(folder, affine=AFFINE, truth=WHOLE):
    path = folder / "s05" / "2_kidney_right_labels.nii.gz"
    edit(path, lambda _: truth[place_in(path, affine)])
    return path


def fix(case, folder, **options):
    """Read a case with its fixed files, and return the voxels, the changed labels and the item."""
    [case] = add_fixed([case], folder)
    item = FixLabelsd("image", **options)(LoadLabelMapd("image", **options)(case))
    return item["image"].numpy()[0], changes_of(item["image"].meta.get("fixed", "")), item


@pytest.fixture
def case(label_file):
    return {"case": "s05", "image": label_file(HALF, "s05.nii.gz")}


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE, LIA], ids=["straight", "oblique", "LIA"])
def test_edited_crop_is_pasted_where_it_was_cut(label_file, tmp_path, affine):
    case = {"case": "s05", "image": label_file(HALF, "s05.nii.gz", affine)}
    CropFolder(tmp_path / "fixed", ORGANS).write("s05", 2, HALF, affine, image=None)
    path = repair(tmp_path / "fixed", affine)
    voxels, changes, item = fix(case, tmp_path / "fixed")
    assert not np.array_equal(HALF, WHOLE)
    np.testing.assert_array_equal(voxels, WHOLE)
    seconds = path.stat().st_mtime_ns // 10**9
    assert changes == {2: ("crop", seconds), 66: ("crop", seconds)}, "the kidney grew into the muscle"
    np.testing.assert_allclose(item["image"].affine, affine, atol=1e-4)


def test_crop_that_nobody_changed_is_not_even_listed(fixed, case, caplog):
    caplog.set_level(logging.INFO)
    assert add_fixed([case], fixed) == [{**case, "fixed": ""}]
    assert "0 whole maps, 0 crops, and 1 crops that nobody changed" in caplog.text
    repair(fixed)
    assert json.loads(add_fixed([case], fixed)[0]["fixed"])[0][0] == "crop"


def test_crop_that_an_editor_saved_without_a_change_changes_nothing(fixed, case):
    path = fixed / "s05" / "2_kidney_right_labels.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.int16), image.affine), path)  # another header
    voxels, changes, _ = fix(case, fixed)
    np.testing.assert_array_equal(voxels, HALF)
    assert changes == {}


def test_no_folder_changes_no_case(case):
    assert add_fixed([case], "") == [case]


def test_whole_map_replaces_the_map_and_keeps_its_header(fixed, case):
    nib.save(nib.Nifti1Image(WHOLE.astype(np.int16), AFFINE), fixed / "s05.nii.gz")
    voxels, changes, item = fix(case, fixed)
    np.testing.assert_array_equal(voxels, WHOLE)
    assert {label: kind for label, (kind, _) in changes.items()} == {2: "map", 66: "map"}
    assert item["image"].meta["nifti_header"] == LoadLabelMapd("image")(case)["image"].meta["nifti_header"]


def test_whole_maps_hold_the_ids_of_the_input_and_crops_those_of_the_label_table(label_file, json_file, tmp_path):
    own = {66: 7, 2: 1, 3: 5}
    renumbered = np.zeros_like(WHOLE)
    for label, other in own.items():
        renumbered[label == HALF] = other
    names = json_file({str(other): ORGANS[label] for label, other in own.items()})
    case = {"case": "s05", "image": label_file(renumbered, "s05.nii.gz")}
    (tmp_path / "fixed").mkdir()
    renumbered[WHOLE == 2] = 1
    nib.save(nib.Nifti1Image(renumbered, AFFINE), tmp_path / "fixed" / "s05.nii.gz")
    by_map, _, item = fix(case, tmp_path / "fixed", label_names=names)
    assert json.loads(item["image"].meta["sources"])["1"] == (WHOLE == 2).sum()
    (tmp_path / "fixed" / "s05.nii.gz").unlink()
    CropFolder(tmp_path / "fixed", ORGANS).write("s05", 2, HALF, AFFINE, image=None)
    repair(tmp_path / "fixed")
    by_crop, _, _ = fix(case, tmp_path / "fixed", label_names=names)
    for voxels in (by_map, by_crop):
        np.testing.assert_array_equal(voxels == 2, WHOLE == 2)


def two_crops(fixed):
    CropFolder(fixed, ORGANS).write("s05", 66, HALF, AFFINE, image=None)  # overlaps the other
    repair(fixed)
    return fixed / "s05" / "66_muscle_labels.nii.gz"


def test_overlapping_crops_that_change_other_voxels_are_both_pasted(fixed, case):
    path = two_crops(fixed)
    outside = np.argwhere(np.asarray(nib.load(path).dataobj) == 3)[0]
    edit(path, lambda array: array.__setitem__(tuple(outside), 66))
    voxels, changes, _ = fix(case, fixed)
    np.testing.assert_array_equal(voxels == 2, WHOLE == 2)
    assert (voxels == 3).sum() == (WHOLE == 3).sum() - 1
    assert set(changes) == {2, 3, 66}


@pytest.mark.parametrize("other", ["crop", "map"])
def test_fixed_files_that_disagree_are_refused_by_name(fixed, case, other):
    """Both change the same voxel, in another way; a file that leaves it as it was says nothing about it."""
    voxel = tuple(np.argwhere((WHOLE == 2) & (HALF != 2))[0])
    path = two_crops(fixed)
    changed = HALF.copy()
    changed[voxel] = 3
    if other == "crop":
        edit(path, lambda _: changed[place_in(path)])
    else:
        path.unlink()
        nib.save(nib.Nifti1Image(changed, AFFINE), fixed / "s05.nii.gz")
    with pytest.raises(InputError, match=r"\.nii\.gz: changes 1 voxels in another way than") as error:
        fix(case, fixed)
    assert f"such as {voxel[0]}, {voxel[1]}, {voxel[2]}; make them agree" in str(error.value)


def moved(image, by_mm):
    affine = image.affine.copy()
    affine[:3, 3] += by_mm
    return nib.Nifti1Image(np.asarray(image.dataobj), affine)


BROKEN = {
    "half a voxel away": (lambda image: moved(image, [2, 0, 0]), r"up to 0\.5 voxels away; save"),
    "finer": (
        lambda image: nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.002, 1, 1, 1])),
        "its voxels are not those of the map",
    ),
    "outside": (lambda image: moved(image, [400, 0, 0]), "reaches beyond the map of its case"),
    "flipped": (
        lambda image: image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]])),
        "its voxels are not those of the map",
    ),
    "an unknown label": (
        lambda image: nib.Nifti1Image(np.full(image.shape, 200, np.uint8), image.affine),
        "holds 200, which the label table lacks",
    ),
    "an image": (
        lambda image: nib.Nifti1Image(np.full(image.shape, -7, np.int16), image.affine),
        "give a label map, not an image",
    ),
}


@pytest.mark.parametrize("way", BROKEN)
def test_crop_that_does_not_fit_is_refused_by_name(fixed, case, way):
    path, (change, message) = fixed / "s05" / "2_kidney_right_labels.nii.gz", BROKEN[way]
    nib.save(change(nib.load(path)), path)
    with pytest.raises(InputError, match=rf"2_kidney_right_labels\.nii\.gz: .*{message}"):
        fix(case, fixed)


def test_whole_map_on_another_grid_and_a_damaged_file_are_refused_by_name(fixed, case):
    nib.save(nib.Nifti1Image(WHOLE[1:], AFFINE), fixed / "s05.nii.gz")
    with pytest.raises(
        Exception, match=r"fixed/s05\.nii\.gz: another grid than the map of its case: shape 29 x 24 x 28"
    ):
        fix(case, fixed)
    (fixed / "s05.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"fixed/s05\.nii\.gz: cannot be read whole"):
        fix(case, fixed)


def test_files_that_fit_no_case_are_named_with_the_nearest(fixed, case, caplog):
    nib.save(nib.Nifti1Image(WHOLE, AFFINE), fixed / "s5.nii.gz")
    shutil.copytree(fixed / "s05", fixed / "s06")
    for name in ("s05/2_kidney_right.seg.nrrd", "s05/2_kidney_right_image.nii.gz", "s05/fixed.nii.gz", "s05/.hidden"):
        (fixed / name).touch()
    add_fixed([case], fixed)
    assert f"fixed {fixed}: no case is named s06 (s05?), s5 (s05?)" in caplog.text
    left = "neither <case>.nii.gz nor a crop: s05/2_kidney_right.seg.nrrd, s05/fixed.nii.gz\n"
    assert left in caplog.text


def test_missing_folder_is_refused(case, tmp_path):
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file or directory\); give a folder"):
        add_fixed([case], tmp_path / "none")


@pytest.fixture
def clean(cohort_dataset, cleaner, fixed, measured, tmp_path):
    """Clean eight cases with the fixed files; return the decisions and how many cases were measured."""

    def run(*, verdicts=None, folder=fixed, **options):
        dataset = cohort_dataset(8)
        dataset.transform = Compose([LoadLabelMapd("image"), FixLabelsd("image"), ShapeFeaturesd("image")])
        dataset.data = add_verdicts(add_fixed(dataset.data, folder), verdicts)
        before = len(measured)
        cleaner(dataset, verdicts=verdicts, **options).run()
        table = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False).set_index(["case", "label"])
        return table, len(measured) - before

    return run


def test_only_cases_whose_fixed_files_changed_are_measured_again(clean, fixed, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    table, count = clean(folder="")
    assert count == 8
    assert "fixed" not in table
    assert table.loc[("s05", 2), "decision"] == "reject"
    assert clean()[1] == 0, "its crop is as it was written"
    path = repair(fixed)
    table, count = clean()
    assert count == 1
    assert table["fixed"].to_dict() == {key: "crop" * (key in [("s05", 2), ("s05", 66)]) for key in table.index}
    assert table.loc[("s05", 2), "decision"] == "keep"
    assert "fixed: 2 labels of 1 cases differ from the label maps" in caplog.text
    voxels = np.asarray(nib.load(tmp_path / "out" / "s05_cleaned.nii.gz").dataobj)
    np.testing.assert_array_equal(voxels, WHOLE)
    assert clean()[1] == 0
    os.utime(path, ns=(1, 1))
    nib.save(nib.Nifti1Image(small_map(1), AFFINE), fixed / "s01.nii.gz")
    assert clean()[1] == 2, "one changed, one added"
    path.unlink()
    table, count = clean()
    assert count == 1
    assert table.loc[("s05", 2), "decision"] == "reject"


def test_fixed_files_that_cannot_be_used_fail_their_case_alone(clean, fixed, tmp_path):
    path = repair(fixed)
    nib.save(moved(nib.load(path), [1, 0, 0]), path)
    table, _ = clean()
    assert set(table.index.get_level_values("case")) == {f"s{n:02d}" for n in range(8)} - {"s05"}
    assert "2_kidney_right_labels.nii.gz" in (tmp_path / "out" / "failed.csv").read_text()
    assert not (tmp_path / "out" / "s05_cleaned.nii.gz").exists()


@pytest.fixture
def verdicts(tmp_path):
    """Write verdicts about labels of s05, given so many seconds after a time, and read them."""

    def make(time_ns, *rows):
        times = [pd.Timestamp(time_ns // 10**9 + int(after), unit="s", tz="UTC").isoformat() for *_, after in rows]
        lines = [f"s05,{n},{v},{who},{time}\n" for (n, v, who, _), time in zip(rows, times, strict=True)]
        (tmp_path / "v.csv").write_text("case,label,verdict,reviewer,reviewed_at\n" + "".join(lines))
        return read_verdicts(tmp_path / "v.csv")

    return make


@pytest.mark.parametrize("rejected", ["ignore", "drop_case"])
def test_verdict_that_is_older_than_the_fix_does_not_count_and_newer_ones_do(
    clean, fixed, verdicts, tmp_path, caplog, rejected
):
    time_ns = repair(fixed).stat().st_mtime_ns
    rows = [(2, "reject", "alice", -60), (3, "reject", "alice", -60), (66, "reject", "bob", 60)]
    rows.append((66, "accept", "alice", -60))  # else a tie
    table, _ = clean(verdicts=verdicts(time_ns, *rows), rejected=rejected, drop_share=0.9)
    assert table.loc["s05", "decision"].to_dict() == {2: "keep", 3: "reject", 66: "reject"}
    assert table.loc["s05", "verdict"].to_dict() == {2: "", 3: "reject", 66: "reject"}
    assert (
        "of 2 labels some are older than their fixed file and do not count; review them again: s05 kid" in caplog.text
    )
    voxels = np.asarray(nib.load(tmp_path / "out" / "s05_cleaned.nii.gz").dataobj)
    np.testing.assert_array_equal(voxels, np.where(np.isin(WHOLE, [3, 66]), 255, WHOLE))
    caplog.clear()
    again, count = clean(verdicts=verdicts(time_ns, *rows), rejected=rejected, drop_share=0.9)
    assert count == 0
    pd.testing.assert_frame_equal(again, table)


def test_majority_is_that_of_the_verdicts_that_count(clean, fixed, verdicts):
    time_ns = repair(fixed).stat().st_mtime_ns
    rows = [(2, "reject", "alice", -60), (2, "reject", "carol", -9), (2, "accept", "bob", 60), (3, "reject", "bob", 60)]
    table, _ = clean(verdicts=verdicts(time_ns, *rows, (3, "accept", "alice", 60)))
    assert table.loc[("s05", 2), ["decision", "reviewer"]].tolist() == ["keep", "bob"]
    assert table.loc[("s05", 3), "verdict"] == "", "a tie"


def test_report_shows_and_crops_what_was_fixed(clean, fixed, tmp_path, verdicts):
    time_ns = repair(fixed).stat().st_mtime_ns
    clean(verdicts=verdicts(time_ns, (2, "reject", "bob", 60)), qc=True, review={"crops": True})
    path = tmp_path / "out" / "crops" / "s05" / "2_kidney_right_labels.nii.gz"
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), WHOLE[place_in(path)])
