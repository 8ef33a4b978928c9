import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.solf.inputs import list_label_maps
from scripts.solf.renaming import Renaming
from scripts.solf.transforms import LoadLabelMapd, read_labels
from tests.scripts.io.dicom_files import write_series
from tests.scripts.io.test_dicom_seg import organs, write_seg


def write(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.eye(4, dtype=np.uint8)[None], np.eye(4)), path)


def names(source, **options):
    return {case["case"]: Path(case["image"]) for case in list_label_maps(source, **options)}


def refused(source, **options):
    with pytest.raises(InputError) as error:
        list_label_maps(source, **options)
    return str(error.value)


def test_folders_in_folders_are_read_and_what_is_left_out_is_named(tmp_path, caplog):
    write(tmp_path / "a.nii.gz", tmp_path / "x/a.nii", tmp_path / "x/y/b.nii.gz", tmp_path / ".hidden/c.nii")
    (tmp_path / "x/y/notes.txt").touch()
    (tmp_path / "x/loop").symlink_to(tmp_path)
    assert names(tmp_path) == {
        "a": tmp_path / "a.nii.gz",
        "x_a": tmp_path / "x/a.nii",
        "b": tmp_path / "x/y/b.nii.gz",
    }
    assert caplog.messages == [f"{tmp_path}: left out 1 that are no label maps: x/y/notes.txt"]


def test_results_of_an_earlier_run_are_left_out(tmp_path, caplog):
    write(tmp_path / "a.nii.gz", tmp_path / "out/a_cleaned.nii.gz")
    (tmp_path / "out/journal.sqlite").touch()
    assert list(names(tmp_path, output_dir=tmp_path / "out")) == ["a"]
    assert caplog.messages == [f"{tmp_path}: left out 1 that are no label maps: out"]


def test_results_are_not_written_where_label_maps_lie(tmp_path):
    write(tmp_path / "x/a.nii.gz", tmp_path / "s1/spleen.nii.gz", tmp_path / "s1/liver.nii.gz")
    assert "where inputs lie" in refused(tmp_path, output_dir=tmp_path / "x")
    assert refused(tmp_path, output_dir=tmp_path / "s1").startswith(f"output_dir is {tmp_path}/s1, where a label map")
    assert len(names(tmp_path, output_dir=tmp_path / "new")) == 2


def test_folder_of_organs_is_one_case(tmp_path, caplog):
    caplog.set_level("INFO")
    for case in ("s1", "s2"):
        write(*(tmp_path / case / f"{organ}.nii.gz" for organ in ("spleen", "liver", "vertebrae_L1")))
    write(tmp_path / "s3/segmentations/spleen.nii.gz", tmp_path / "s3/segmentations/brain.nii.gz")
    write(tmp_path / "s3/segmentations/liver.nii.gz", tmp_path / "s3/ct.nii.gz")
    assert names(tmp_path) == {
        "s1": tmp_path / "s1",
        "s2": tmp_path / "s2",
        "s3": tmp_path / "s3/segmentations",
    }
    assert caplog.messages == [
        f"{tmp_path}: left out 1 that are no label maps: s3/ct.nii.gz",
        f"{tmp_path}: found 3 label maps, 3 of them folders of masks",
    ]
    assert names(tmp_path / "s1") == {"s1": tmp_path / "s1"}
    labels = LoadLabelMapd("image")({"image": str(tmp_path / "s1")})["image"]
    assert labels.unique().tolist() == [0, 5]  # all masks are equal: the highest id is kept


def test_organs_of_another_label_table_make_a_case(tmp_path):
    write(tmp_path / "s1/left_eye.nii.gz", tmp_path / "s1/right_eye.nii.gz")
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"1": "left_eye", "2": "right_eye"}))
    assert list(names(tmp_path / "s1")) == ["left_eye", "right_eye"]
    assert list(names(tmp_path / "s1", label_table=table)) == ["s1"]


def test_segmentations_of_a_bids_tree_are_read(tmp_path, caplog):
    for person in ("01", "02"):
        for session in ("a", "b"):
            stem = tmp_path / f"sub-{person}/ses-{session}/anat/sub-{person}_ses-{session}"
            write(
                Path(f"{stem}_desc-aseg_dseg.nii.gz"), Path(f"{stem}_T1w.nii.gz"), Path(f"{stem}_label-GM_probseg.nii")
            )
    (tmp_path / "dataset_description.json").touch()
    assert list(names(tmp_path)) == [f"sub-{p}_ses-{s}_desc-aseg_dseg" for p in ("01", "02") for s in "ab"]
    assert caplog.messages[0].startswith(
        f"{tmp_path}: left out 9 that are no label maps: dataset_description.json, sub-"
    )
    write(tmp_path / "sub-01/anat/sub-01_space-MNI_dseg.nii.gz")
    message = (
        "holds 2 kinds of label maps: desc-aseg_dseg, space-MNI_dseg; give a datalist or a folder with one of them."
    )
    assert refused(tmp_path) == f"{tmp_path}: {message}"


def test_bids_names_that_repeat_get_their_folders(tmp_path):
    write(tmp_path / "sub-1/ses-1/anat/seg_dseg.nii.gz", tmp_path / "sub-1/ses-2/anat/seg_dseg.nii.gz")
    assert list(names(tmp_path)) == ["ses-1_anat_seg_dseg", "ses-2_anat_seg_dseg"]


def test_bids_tree_of_images_is_refused(tmp_path):
    write(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz")
    assert refused(tmp_path) == f"{tmp_path}: is a BIDS tree without *_dseg.nii.gz; give the folder of derivatives."


def test_data_set_of_images_and_labels_is_refused(tmp_path):
    write(tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    assert refused(tmp_path) == f"{tmp_path}: holds images (imagesTr); give labelsTr of it, or a datalist."
    assert list(names(tmp_path / "labelsTr")) == ["a"]


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "x/a.nii.gz")
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "x":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert refused(tmp_path) == f"{tmp_path}/x: cannot be read (Permission denied); correct its permissions."


def test_dicom_segmentations_are_read_and_slices_left_out(tmp_path, caplog):
    write_series(tmp_path / "p1/ct")
    (tmp_path / "p1/seg").mkdir()
    write_seg(tmp_path / "p1/ct", tmp_path / "p1/seg/organs.dcm", organs((10, 8, 6)))
    assert names(tmp_path) == {"organs": tmp_path / "p1/seg/organs.dcm"}
    assert names(tmp_path / "p1/seg/organs.dcm") == {"organs": tmp_path / "p1/seg/organs.dcm"}
    assert caplog.messages[0].startswith(f"{tmp_path}: left out 6 that are no label maps: p1/ct/001.dcm")
    assert "holds neither NIfTI" in refused(tmp_path / "p1/ct")
    volume, sources = read_labels(tmp_path / "p1/seg/organs.dcm", Renaming())
    assert np.unique(volume.stored).tolist() == [0, 1, 5, 255]
    assert json.loads(sources).keys() == {"=Spleen", "=Liver", "=Tumour", "overlap"}


@pytest.mark.parametrize(
    ("content", "split", "expected"),
    [
        ({"training": ["a.nii"], "test": ["b.nii"]}, ("training", "test"), "a"),
        ({"training": [{"image": "a.nii"}], "test": ["b.nii"]}, ("test", "training"), "b"),
        ({"test": ["b.nii"]}, ("training", "test"), "b"),
        ({"training": [{"image": "a.nii", "label": "b.nii"}]}, ("test", "training"), "a"),
    ],
)
def test_first_section_of_a_datalist_that_holds_cases_is_read_and_named(tmp_path, caplog, content, split, expected):
    caplog.set_level("INFO")
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert list(names(tmp_path / "list.json", split=split)) == [expected]
    section = "training" if expected == "a" else "test"
    assert caplog.messages[-1] == f'{tmp_path}/list.json: read the 1 cases of "{section}"'


def test_datalist_without_cases_is_refused(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"validation": ["a.nii"]}))
    message = "lists no cases as training or test; list some."
    assert refused(tmp_path / "list.json", split=("training", "test")) == f"{tmp_path}/list.json: {message}"


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"PNG")
    message = "holds neither NIfTI (.nii, .nii.gz) nor DICOM SEG; give another path."
    assert refused(tmp_path / "x.png") == f"{tmp_path}/x.png: {message}"
    assert refused(tmp_path) == f"{tmp_path}: {message}"
