import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data import inputs
from scripts.data.inputs import list_cases
from scripts.io.loading import LoadVolumed
from tests.conftest import ROOT, SHARED_DATA
from tests.scripts.io.dicom_files import write_series


def write_volume(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.rand(4, 4, 4).astype(np.float32), np.eye(4)), path)
    return path


def names(source):
    return [(case["case"], case["image"]) for case in list_cases(source)]


def test_file_is_one_case(tmp_path):
    path = write_volume(tmp_path / "liver.v2.nii.gz")
    assert names(path) == [("liver.v2", str(path))]


def test_folder_gives_its_volumes_in_order_of_name(tmp_path):
    for name in ("b.nii.gz", "a.nii", "notes.txt", ".hidden.nii.gz"):
        write_volume(tmp_path / name) if "nii" in name else (tmp_path / name).write_text("x")
    assert [name for name, _ in names(tmp_path)] == ["a", "b"]


def test_same_stem_twice_gives_two_names(tmp_path):
    write_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "a.nii.gz")
    assert [name for name, _ in names(tmp_path)] == ["a", "a_2"]


def test_datalist_gives_its_test_cases_with_their_labels(tmp_path):
    for name in ("x/ct.nii.gz", "y/ct.nii.gz", "y/label.nii.gz"):
        write_volume(tmp_path / name)
    content = {"test": ["x/ct.nii.gz", {"image": "y/ct.nii.gz", "label": "y/label.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = list_cases(tmp_path / "list.json")
    assert [case["case"] for case in cases] == ["x_ct", "y_ct"]
    assert cases[1]["label"].endswith("y/label.nii.gz")


def test_another_section_of_a_datalist_is_listed_without_checking_its_files(tmp_path):
    content = {"training": [{"image": "a.nii", "label": "a_label.nii"}], "test": ["b.nii"]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    (case,) = list_cases(tmp_path / "list.json", split="training")
    assert case == {"image": str(tmp_path / "a.nii"), "label": str(tmp_path / "a_label.nii"), "case": "a"}


def test_empty_section_of_a_datalist_is_refused(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match=r"list\.json: no test cases"):
        list_cases(tmp_path / "list.json")


def test_dicom_folder_is_one_case_and_so_is_one_of_its_slices(series):
    assert names(series) == [("series", str(series))]
    assert names(next(series.iterdir())) == [("series", str(series))]


def test_folder_of_dicom_series_gives_each(series):
    shutil.copytree(series, series.parent / "another")
    assert [name for name, _ in names(series.parent)] == ["another", "series"]


def test_series_in_a_folder_and_its_subfolders_are_all_listed(tmp_path):
    """The index of a CD is not a series."""
    write_series(tmp_path / "cd" / "s1")
    (tmp_path / "cd" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert [name for name, _ in names(tmp_path / "cd")] == ["s1"]
    write_series(tmp_path / "cd")
    assert [name for name, _ in names(tmp_path / "cd")] == ["cd", "s1"]


def test_entries_named_as_volumes_that_are_none_fail_by_name(tmp_path):
    """They were left out without a word."""
    write_volume(tmp_path / "a.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "link.nii.gz").symlink_to("nothing")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    cases = list_cases(tmp_path)
    assert [case["case"] for case in cases] == ["a", "folder", "link", "loop", "pipe"]
    for case in cases[1:]:
        with pytest.raises(InputError, match=case["case"]):
            LoadVolumed("image")(case)


def test_what_is_left_out_is_named(tmp_path, caplog):
    for name in ("b.nii.gz", "a.hdr", "a.img", "c.mha", "d.nrrd", "e.json", "deep/er/f.nii", ".g.nii"):
        write_volume(tmp_path / name) if "nii" in name else (tmp_path / name).touch()
    assert [name for name, _ in names(tmp_path)] == ["b"]
    listed = "a.hdr, a.img, c.mha, d.nrrd, deep, ..."
    assert caplog.messages == [f"{tmp_path}: left out 6 that are neither volume nor series: {listed}"]


def test_folder_that_cannot_be_read_is_a_case_that_fails(tmp_path, monkeypatch):
    write_volume(tmp_path / "a.nii.gz")
    (tmp_path / "closed").mkdir()
    iterdir = type(tmp_path).iterdir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    cases = list_cases(tmp_path)
    assert [case["case"] for case in cases] == ["a", "closed"]
    with pytest.raises(InputError, match=r"closed: cannot be read \(Permission denied\); correct its permissions\.$"):
        LoadVolumed("image")(cases[1])
    with pytest.raises(InputError, match=r"closed: cannot be read \(Permission denied\); correct the path\.$"):
        list_cases(tmp_path / "closed")


def test_unsafe_names_are_made_safe(tmp_path):
    for name in (b"p9\xe9.nii", b"a\nb.nii", b"-x.nii", b"CON.nii", b"A.nii", b"a.nii", b"x" * 248 + b".nii"):
        write_volume(tmp_path / os.fsdecode(name))
    cases = list_cases(tmp_path)
    assert {case["case"] for case in cases} >= {"p9_", "a_b", "_x", "_CON", "A", "a_2"}
    assert {len(case["case"]) for case in cases} == {4, 3, 2, 1, 200}
    for case in cases:
        assert LoadVolumed("image")(case)["image"].shape == (1, 4, 4, 4)


def refused(*arguments, **options):
    with pytest.raises(InputError) as error:
        list_cases(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize("output", ["input", "input/.", "other/../input", "link"])
def test_folder_of_the_inputs_is_no_folder_for_results(tmp_path, output):
    write_volume(tmp_path / "input" / "a.nii.gz")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("input")
    message = refused(tmp_path / "input", output_dir=tmp_path / output)
    assert message.startswith(f"output_dir is {tmp_path / output}, where inputs lie ({tmp_path / 'input'}")
    assert message.endswith("or be segmented by the next run; set output_dir to another folder.")
    for fine in (tmp_path, tmp_path / "input" / "results", tmp_path / "new"):
        assert len(list_cases(tmp_path / "input", output_dir=fine)) == 1


def test_results_of_a_single_file_may_lie_beside_it_but_not_beside_its_label(tmp_path):
    path = write_volume(tmp_path / "a.nii.gz")
    assert len(list_cases(path, output_dir=tmp_path)) == 1

    def find(path):
        return [{"image": [str(path)], "case": str(path), "label": str(tmp_path / "a_seg.nii.gz")}]

    assert f"where inputs lie ({tmp_path / 'a_seg.nii.gz'})" in refused(path, output_dir=tmp_path, find=find)


def test_results_may_lie_neither_beside_images_of_a_datalist_nor_in_a_series(tmp_path):
    write_volume(tmp_path / "imagesTs" / "a.nii")
    (tmp_path / "list.json").write_text(json.dumps({"test": ["imagesTs/a.nii"]}))
    assert len(list_cases(tmp_path / "list.json", output_dir=tmp_path)) == 1
    assert "imagesTs/a.nii" in refused(tmp_path / "list.json", output_dir=tmp_path / "imagesTs")
    write_series(tmp_path / "series")
    assert "where inputs lie" in refused(tmp_path / "series", output_dir=tmp_path / "series")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"test": ["p9\xe9.nii"]}', "list.json: not readable as JSON ("),
        (b"[" * 100_000, "list.json: not readable as JSON (maximum recursion depth exceeded"),
        (b'{"test": [' + b'{"x":' * 100_000, "list.json: not readable as JSON (maximum recursion depth exceeded"),
        (b'{"test": ["a\\ud800.nii"]}', r"test[0]: image is 'a\ud800.nii', need one path as text"),
        (b"", "list.json: not readable as JSON ("),
        (b"\0" * 99, "list.json: not readable as JSON ("),
    ],
)
def test_hostile_datalist_is_refused(tmp_path, content, message):
    (tmp_path / "list.json").write_bytes(content)
    assert message in refused(tmp_path / "list.json")


def test_huge_datalist_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_DATALIST_BYTES", 99)
    (tmp_path / "list.json").write_text(json.dumps({"test": ["a.nii"] * 20}))
    assert (
        refused(tmp_path / "list.json")
        == f"{tmp_path}/list.json: has 0 MB, too many for a datalist; give another file."
    )


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
def test_folder_or_pipe_named_as_a_datalist_is_refused(tmp_path, kind):
    kind(tmp_path / "list.json")
    message = "is a folder, a pipe or a device, not a datalist; give another path."
    assert refused(tmp_path / "list.json").endswith(message)


@pytest.mark.parametrize("source", ["", None, 5, ["a.nii"], "a\0.nii"])
def test_input_that_is_no_path_is_refused(source):
    assert refused(source) == f"input is {source!r}: give the path of a NIfTI file, a folder or a datalist."


def test_path_that_is_too_long_is_refused(tmp_path):
    assert refused(tmp_path / ("x" * 300)).endswith("x: cannot be read (File name too long); correct the path.")


def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "holds neither NIfTI" in refused(tmp_path / "pipe")


def test_missing_path_is_shown_printably(tmp_path):
    message = refused(tmp_path / os.fsdecode(b"p9\xe9\n"))
    assert message.startswith(rf"{tmp_path}/p9\udce9\n: no such file or folder;")


def test_cases_may_be_found_by_another_function(tmp_path):
    def find(path):
        return [{"image": [str(path / "x" / name), str(path / "y")], "case": str(path / "x" / name)} for name in "ab"]

    cases = list_cases(tmp_path, images_per_case=2, find=find)
    assert [case["case"] for case in cases] == ["a", "b"]
    assert cases[1]["image"] == [str(tmp_path / "x" / "b"), str(tmp_path / "y")]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "x.txt").write_text("text")])
def test_folder_without_volumes_is_refused(tmp_path, make):
    make(tmp_path)
    with pytest.raises(InputError, match=r"holds neither NIfTI \(.nii, .nii.gz\) nor DICOM"):
        list_cases(tmp_path)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"x\.png: holds neither NIfTI"):
        list_cases(tmp_path / "x.png")


def test_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none: no such file or folder; give a NIfTI file, a folder or a datalist\.$"):
        list_cases(tmp_path / "none")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("ct_torso", ["image", "label_btcv13", "label_totalsegmentator"]),
        ("mr_torso", ["image", "label_totalsegmentator_mr"]),
        ("ct_dicom", ["ct_dicom"]),
    ],
)
def test_cases_of_real_data_are_listed(folder, expected):
    source = SHARED_DATA / folder
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    assert [name for name, _ in names(source)] == expected


def test_importing_costs_no_more_than_nibabel():
    """So that a process of a cohort starts in half a second; nibabel imports pydicom and SciPy by itself."""
    code = """
import sys, nibabel, tqdm
before = set(sys.modules)
import scripts.data.inputs
heavy = ("torch", "monai", "ignite", "pandas", "matplotlib", "numba")
print([name for name in heavy if name in sys.modules])
print([name for name in ("pydicom", "scipy") if name in sys.modules and name not in before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n[]\n"
