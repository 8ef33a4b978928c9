import pytest

from scripts.common.names import is_dicom, is_nifti, name_path, stem, unique_names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.nii.gz", "b"),
        ("b.NII", "b"),
        ("x/1.2.840.113", "1.2.840.113"),
        ("x/series/", "series"),
        ("v1.2.nii", "v1.2"),
    ],
)
def test_stem_drops_folder_and_nifti_suffix_only(path, name):
    assert stem(path) == name


def test_repeated_stems_get_their_folders_and_then_numbers():
    paths = ["/d/x/ct.nii", "/d/y/ct.nii", "/d/y/ct.nii.gz", "/d/pet.nii"]
    assert unique_names(paths) == ["x_ct", "y_ct", "y_ct_2", "pet"]


def test_same_path_gets_the_same_name():
    assert unique_names(["/d/a.nii", "/d/a.nii"]) == ["a", "a"]


def test_no_paths_have_no_names():
    assert unique_names([]) == []


def test_name_that_looks_numbered_is_not_given_twice():
    assert len(set(unique_names(["/d/x_a.nii", "/d/x/a.nii", "/d/y/a.nii"]))) == 3


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("a/ct.nii.gz", "a/ct.nii.gz"),
        (["a/p-1-t1n.nii.gz", "a/p-1-t1c.nii.gz", "a/p-1-t2w.nii.gz", "a/p-1-t2f.nii.gz"], "a/p-1"),
        (["a/p_1_t1.nii", "a/p_1_t1ce.nii", "a/p_1_t2.nii", "a/p_1_flair.nii"], "a/p_1"),
        (["a/p1/t1n.nii.gz", "a/p1/t1c.nii.gz"], "a/p1"),
        (["a/p1/t1.nii", "a/p1/flair.nii"], "a/p1"),
        (["a/one-t1n.nii.gz"], "a/one-t1n"),
    ],
)
def test_image_in_several_files_is_named_after_their_common_beginning(image, path):
    assert name_path(image) == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii", True), ("a.nii.gz", True), ("A.NII.GZ", True), ("._a.nii.gz", False), ("a.gz", False), ("a.mha", False)],
)
def test_nifti_is_known_by_its_name_and_hidden_files_are_ignored(tmp_path, name, expected):
    assert is_nifti(tmp_path / name) is expected


@pytest.mark.parametrize(
    ("content", "expected"), [(bytes(128) + b"DICM" + bytes(9), True), (b"DICM", False), (b"", False)]
)
def test_dicom_is_known_by_its_prefix(tmp_path, content, expected):
    (tmp_path / "slice").write_bytes(content)
    assert is_dicom(tmp_path / "slice") is expected
