import json
import logging

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.datalist import load_datalist
from scripts.pretrain.contrasts import read_image
from scripts.pretrain.prepare_open import known_ids, main, prepare_open, read_label
from tests.conftest import SHARED_DATA
from tests.scripts.pretrain.open_data import AFFINE, blocks, body, labels_of, map_subject, masks_subject, save

EXPECTED = np.array([0, 1, 18, 255, 255], np.uint8)[blocks()]
"""Colon is intestine; a whole vertebra and a whole lung are no single organ."""


@pytest.fixture
def data_set(tmp_path):
    """A subject of masks and one of a label map."""
    masks_subject(tmp_path / "in" / "a")
    map_subject(tmp_path / "in" / "b", seed=1)
    return tmp_path / "in"


def test_masks_and_maps_give_the_same_labels_and_structures_without_a_counterpart_are_ignored(
    data_set, tmp_path, caplog
):
    with caplog.at_level(logging.INFO, logger="scripts.pretrain.prepare_open"):
        assert prepare_open([data_set], tmp_path / "out", workers=0) == {}
    for case in "ab":
        np.testing.assert_array_equal(labels_of(tmp_path / "out" / "labels" / f"{case}.nii.gz"), EXPECTED)
    assert "prepared 2 of 2 cases with 2 of the 72 organs" in caplog.text
    assert "ignored (255), for they are not one of the organs: lung_left, vertebrae_L1" in caplog.text


def test_datalist_is_one_that_a_training_takes(data_set, tmp_path):
    prepare_open([data_set], tmp_path / "out", contrast="water", workers=0)
    options = {"num_classes": 73, "ignored_label": 255, "ignored_in": ("training", "validation")}
    sections = load_datalist(tmp_path / "out", read_image=read_image, **options)
    assert [item["case"] for item in sections["training"] + sections["validation"]] == ["a", "b"]
    assert sections["training"][0]["contrast"] == "water"
    assert (tmp_path / "out" / "images" / "a.nii.gz").resolve() == (data_set / "a" / "ct.nii.gz").resolve()


def test_body_without_a_label_can_be_ignored_but_not_the_air(data_set, tmp_path):
    prepare_open([data_set], tmp_path / "out", unlabelled="ignore", workers=0)
    labels = labels_of(tmp_path / "out" / "labels" / "a.nii.gz")
    inside = body() > 0
    assert (labels[inside] == 0).mean() < 0.1, "but for the edges of the body"
    assert (labels[~inside] == 0).all()
    organs = np.isin(EXPECTED, [1, 18])
    np.testing.assert_array_equal(labels[organs], EXPECTED[organs])


def test_a_bad_case_is_named_and_the_others_are_finished(data_set, tmp_path, caplog):
    save(blocks(), data_set / "b" / "label.nii.gz", np.diag([2.0, 2.0, 2.0, 1.0]))
    masks_subject(data_set / "c", seed=2)
    (data_set / "c" / "segmentations" / "spleen.nii.gz").write_bytes(b"")
    out = tmp_path / "out"
    assert main([str(data_set), str(out), "--workers", "0"]) == 1
    failed = (out / "failed.csv").read_text()
    assert "label.nii.gz: does not lie on the grid of its image: spacing 2 x 2 x 2" in failed
    assert "spleen.nii.gz: cannot be read whole (0 bytes)" in failed
    listed = json.loads((out / "dataset_0.json").read_text())
    assert [item["image"] for item in listed["training"] + listed["validation"]] == ["images/a.nii.gz"]
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.nii.gz"]


def test_mended_case_is_prepared_by_the_same_command_and_the_others_are_kept(data_set, tmp_path):
    save(blocks(), data_set / "b" / "label.nii.gz", np.diag([2.0, 2.0, 2.0, 1.0]))
    out = tmp_path / "out"
    assert list(prepare_open([data_set], out, workers=0)) == ["b"]
    before = (out / "labels" / "a.nii.gz").stat().st_mtime_ns
    save(blocks(), data_set / "b" / "label.nii.gz", AFFINE)
    assert prepare_open([data_set], out, workers=0) == {}
    assert (out / "labels" / "a.nii.gz").stat().st_mtime_ns == before
    assert not (out / "failed.csv").exists()
    prepare_open([data_set], out, unlabelled="ignore", workers=0)
    assert (labels_of(out / "labels" / "a.nii.gz") == 255).sum() > (EXPECTED == 255).sum()


def test_changed_mask_is_noticed(data_set, tmp_path):
    out = tmp_path / "out"
    prepare_open([data_set], out, workers=0)
    save(np.roll((blocks() == 1).astype(np.uint8), 2, axis=2), data_set / "a" / "segmentations" / "spleen.nii.gz")
    prepare_open([data_set], out, workers=0)
    assert (labels_of(out / "labels" / "a.nii.gz") != EXPECTED).any()


def test_ids_that_the_names_lack_are_ignored_and_listed(tmp_path):
    folder = map_subject(tmp_path / "s")
    save(np.where(blocks() == 1, 9, blocks()).astype(np.uint8), folder / "label.nii.gz")
    volume, ignored = read_label(folder / "label.nii.gz", folder / "names.json")
    assert ignored == ["vertebrae_L1", "lung_left", "id 9"]
    assert (volume.stored[blocks() == 1] == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: save(blocks() + 0.5, f / "label.nii.gz"), "label.nii.gz holds 0.5, not a class id"),
        (lambda f: save(blocks().astype(np.int16) - 1, f / "label.nii.gz"), "label.nii.gz: holds ids from -1 to 3"),
        (lambda f: (f / "names.json").write_text('{"1": "brain"}'), "names.json: none of its 1 names, such as 'brain'"),
        (lambda f: (f / "names.json").write_text("{"), "names.json: holds no names"),
        (lambda f: save(np.full((16, 14, 12), 3, np.int16), f / "image.nii.gz"), "image.nii.gz: is constant"),
        (lambda f: save(body()[..., :5], f / "image.nii.gz"), "label.nii.gz: does not lie on the grid of its image"),
        (lambda f: (f / "image.nii.gz").write_bytes(b"x" * 400), "image.nii.gz: cannot be read whole"),
    ],
)
def test_bad_files_fail_their_case(tmp_path, change, message):
    change(map_subject(tmp_path / "in" / "s"))
    failures = prepare_open([tmp_path / "in"], tmp_path / "out", workers=0)
    assert message in failures["s"]
    assert not (tmp_path / "out" / "dataset_0.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: not a folder; give a folder of subjects"),
        (["in", "--unlabelled", "zero"], "unlabelled is 'zero': give one of background, ignore"),
        (["in", "--contrast", "T1"], "--contrast: contrast is 'T1': give one of fat, water, in_phase, opposed_phase"),
    ],
)
def test_bad_arguments_end_with_2_and_nothing_is_written(data_set, tmp_path, capsys, words, message):
    words = [str(tmp_path / words[0]), str(tmp_path / "out"), *words[1:]]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_set_is_not_written_into(data_set):
    with pytest.raises(InputError, match=r"in: is one of the data sets, which are not changed; choose another OUT"):
        prepare_open([data_set], data_set)


def test_names_of_several_organs_are_ignored(tmp_path):
    assert known_ids(["lung_left", "liver", "colon", "skull"], tmp_path) == {"liver": 5, "colon": 18}


def test_real_ct_and_mr(tmp_path):
    sources = [SHARED_DATA / name for name in ("ct_torso", "mr_torso")]
    if not all(source.is_dir() for source in sources):
        pytest.skip(f"{SHARED_DATA} is absent")
    assert prepare_open(sources, tmp_path, label="label_totalsegmentator*", workers=0) == {}
    ct, mr = (labels_of(tmp_path / "labels" / f"{name}_torso.nii.gz") for name in ("ct", "mr"))
    given = labels_of(sources[0] / "label_totalsegmentator.nii.gz")
    np.testing.assert_array_equal(ct == 5, given == 5)
    np.testing.assert_array_equal(ct == 18, (given == 18) | (given == 20))
    assert 68 in mr
    assert 255 in mr
    assert not np.isin([69, 70], mr).any()
