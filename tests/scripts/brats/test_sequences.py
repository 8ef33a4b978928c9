import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.brats.sequences import (
    check_sequences,
    describe_grid_mismatch,
    describe_missing_overlap,
    find_cases,
    kind_of,
    share_inside,
)
from scripts.common.errors import InputError
from scripts.common.grids import Grid
from tests.scripts.brats.sequence_files import FINER, OBLIQUE, SEQUENCES, SHAPE, write_case

PATHS = [f"p1-{kind}.nii.gz" for kind in SEQUENCES]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1n"),
        ("BraTS2021_00000_t1.nii.gz", "t1n"),
        ("BraTS2021_00000_t1ce.nii", "t1c"),
        ("BraTS20_Training_001_T2.nii", "t2w"),
        ("flair.nii.gz", "t2f"),
        ("x_seg.nii.gz", "seg"),
        ("xt1.nii.gz", None),
        ("x-t1n.mha", None),
        ("._x-t1n.nii.gz", None),
    ],
)
def test_sequence_is_known_by_the_file_name(name, kind):
    assert kind_of(f"folder/{name}") == kind


def test_cases_are_found_in_either_layout_and_in_flat_folders(tmp_path):
    write_case(tmp_path / "a" / "BraTS-GLI-00001-000")
    old = dict(zip(SEQUENCES, ("old_t1.nii", "old_t1ce.nii", "old_t2.nii", "old_flair.nii"), strict=True))
    write_case(tmp_path / "b", names=old)
    write_case(tmp_path / "c", names={kind: f"{kind}.nii.gz" for kind in SEQUENCES})
    (tmp_path / "b" / "old_seg.nii").touch()
    (tmp_path / "b" / "notes.nii").touch()
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["p1", "old", "c"]
    assert cases[1].images == [str(tmp_path / "b" / name) for name in old.values()]
    assert cases[1].labels == [str(tmp_path / "b" / "old_seg.nii")]


def test_folder_named_like_a_sequence_is_not_a_file(tmp_path):
    write_case(tmp_path)
    (tmp_path / "other-t1n.nii").mkdir()
    assert [case.name for case in find_cases(tmp_path)] == ["p1"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            [PATHS[1], PATHS[0], *PATHS[2:]],
            "p1-t1c.nii.gz: is t1c by its name, where t1n belongs: give t1n, t1c, t2w, t2f, in this order.",
        ),
        (PATHS[:3], ".: t2f missing beside p1-t1n.nii.gz: give t1n, t1c, t2w, t2f."),
        ([*PATHS[:3], PATHS[0]], ".: 2 files for t1n (p1-t1n.nii.gz, p1-t1n.nii.gz): keep one."),
        ([*PATHS[:3], "a_flair.nii", "a-t2f.nii"], ".: 2 files for t2f (a_flair.nii, a-t2f.nii): keep one."),
        ([*PATHS, "p1-dwi.nii.gz"], ".: 5 images: give t1n, t1c, t2w, t2f, in this order."),
        (
            ["BraTS-GLI-1-t1n.nii", *(f"BraTS-GLI-2-{kind}.nii" for kind in SEQUENCES[1:])],
            ".: sequences of BraTS-GLI-1 and BraTS-GLI-2: give those of one case.",
        ),
        ([], "a case: 0 images: give t1n, t1c, t2w, t2f, in this order."),
    ],
)
def test_other_than_four_sequences_in_order_is_refused(paths, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_sequences(paths)


def test_files_without_a_known_name_are_taken_in_their_order():
    check_sequences(["1.nii.gz", "2.nii.gz", "p1-t2w.nii.gz", "4.nii.gz"])


def test_series_may_be_numbered():
    check_sequences([f"{number}_{kind}.nii.gz" for number, kind in enumerate(SEQUENCES, start=3)])


def test_grid_mismatch_names_the_sequences_that_differ_and_the_fix():
    same, other = Grid(SHAPE, OBLIQUE), Grid((30, 28, 26), FINER)
    assert describe_grid_mismatch(PATHS, [same] * 4) == ""
    text = describe_grid_mismatch(PATHS, [same, same, other, same])
    assert text.startswith("p1-t1c.nii.gz: not all sequences lie on its grid: t2w has shape 30 x 28 x 26 instead of 25")
    assert "; t" not in text
    assert text.endswith(
        "or set resample to true, which resamples all sequences to the grid of t1c by their affines, without "
        "registration or skull stripping."
    )


def test_grids_within_a_tenth_of_a_millimetre_are_the_same():
    near, far = (Grid(SHAPE, OBLIQUE + np.eye(4, k=3) * mm) for mm in (0.09, 0.11))
    reference = Grid(SHAPE, OBLIQUE)
    assert describe_grid_mismatch(PATHS, [near, reference, reference, reference]) == ""
    assert "t1n has centre 0.1 mm away" in describe_grid_mismatch(PATHS, [far, reference, reference, reference])


# Overlap


def grid(size_mm, centre_mm=(0, 0, 0), turn_deg=0):
    """A grid of 1 mm voxels around a centre, turned about the z axis."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", turn_deg, degrees=True).as_matrix()
    affine[:3, 3] = centre_mm - affine[:3, :3] @ (np.array(size_mm) / 2 - 0.5)
    return Grid(tuple(size_mm), affine)


HEAD = grid((240, 240, 160))


@pytest.mark.parametrize(
    ("other", "share", "reverse"),
    [
        (HEAD, 1, 1),
        (grid((240, 240, 160), (120, 0, 0)), 0.5, 0.5),
        (grid((240, 240, 160), (120, 120, 0)), 0.25, 0.25),
        (grid((240, 240, 160), (1000, 0, 0)), 0, 0),
        (grid((120, 120, 80)), 0.125, 1),
        (grid((480, 240, 160)), 1, 0.5),
        (grid((240, 240, 160), turn_deg=90), 1, 1),
        (grid((240, 240, 160), turn_deg=45), 2 * (2**0.5 - 1), 2 * (2**0.5 - 1)),  # an octagon
    ],
)
def test_share_of_a_field_of_view_in_another(other, share, reverse):
    assert share_inside(HEAD, other) == pytest.approx(share, abs=0.01)
    assert share_inside(other, HEAD) == pytest.approx(reverse, abs=0.01)


@pytest.mark.parametrize(
    ("other", "percent"),
    [
        (grid((240, 240, 160), (118, 0, 0)), None),
        (grid((240, 240, 160), (126, 0, 0)), 47),
        (grid((240, 240, 160), (0, 0, 1000)), 0),
        (grid((140, 170, 140)), None),  # cropped to the brain: a quarter of the field of view
        (grid((240, 240, 30), (0, 0, 60)), None),  # a slab
        (grid((240, 240, 30), (0, 0, 84)), 38),
        (grid((900, 900, 900)), None),
    ],
)
def test_sequences_share_half_of_the_smaller_field_of_view(other, percent):
    text = describe_missing_overlap(PATHS, [HEAD, HEAD, other, HEAD])
    if percent is None:
        assert text == ""
    else:
        assert f"p1-t1c.nii.gz: not all sequences show the region that it shows: t2w shares {percent}% of the" in text
        assert "t1n" not in text
