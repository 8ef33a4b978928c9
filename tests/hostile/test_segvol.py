"""Bad prompts, maps and names in SegVol: one clear error each, no code runs, and nothing is written elsewhere."""

import json
import os
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from scripts.common.errors import InputError
from scripts.models.text_features import write_text_features
from scripts.segvol.prompt_files import MAX_FILE_BYTES, Prompt, read_organs, read_prompts
from scripts.segvol.prompts import PromptBook
from tests.conftest import TINY_OF, message_of, run_bundle
from tests.scripts.models.tiny_networks import saved, tiny_of

pytestmark = pytest.mark.hostile
TINY = {**TINY_OF["segvol"], "text": [], "zoom_in": False}
SHAPE = (26, 24, 28)


@pytest.fixture(scope="module")
def network():
    return tiny_of("segvol")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, network):
    return saved(tmp_path_factory.mktemp("weights") / "model.pt", network.state_dict())


def write_image(path):
    path.parent.mkdir(exist_ok=True)
    voxels = np.random.default_rng(0).integers(-50, 200, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1])), path)
    return path


def infer(folder, weights, *configs, **settings):
    given = {"input": str(folder / "in"), "output_dir": str(folder / "out"), "ckpt_path": str(weights)}
    run_bundle("segvol", ["inference.json", *configs], **TINY, **given, **settings)


def prompts_of(folder, rows):
    (folder / "prompts.json").write_text(json.dumps(rows))
    return str(folder / "prompts.json")


# Files of prompts

POINT = '[{"points": [%s]}]'
BAD_FILES = {
    "empty.json": (b"", "cannot be read as prompts"),
    "latin.csv": ("name,text\nlésion,\n".encode("latin-1"), "cannot be read as prompts ('utf-8' codec"),
    "utf16.json": ('[{"text": "liver"}]'.encode("utf-16"), "cannot be read as prompts ('utf-8' codec"),
    "deep.json": (b"[" * 10**6 + b"]" * 10**6, "cannot be read as prompts"),
    "deep_point.json": (POINT.encode() % (b"[" * 500 + b"]" * 500), "points holds"),
    "nan.json": (POINT.encode() % b"[NaN, 1, 2]", "give 3 numbers"),
    "inf.json": (POINT.encode() % b"[1e999, 1, 2]", "give 3 numbers"),
    "digits.json": (POINT.encode() % (b"[1" + b"0" * 400 + b", 1, 2]"), "give 3 numbers"),
    "more_digits.json": (POINT.encode() % (b"[1" + b"0" * 9000 + b", 1, 2]"), "cannot be read as prompts"),
    "text_point.json": (POINT.encode() % b'"123"', "points holds '123'; give 3 numbers"),
    "keys_point.json": (POINT.encode() % b'{"1": 0, "2": 0, "3": 0}', "give 3 numbers"),
    "true.json": (b'[{"text": "liver", "class_id": true}]', "class_id is True; give a whole number"),
    "many_points.json": (POINT.encode() % b",".join([b"[1,1,1]"] * 5000), "has 5000 points; give at most 1000"),
    "nan.csv": (b"points\n1 nan 2\n", "give 3 numbers"),
    "cells.csv": (b"text,points\nliver,1,2,3\n", "a row has more cells than columns: ['2', '3']"),
    "zeros.csv": (b"\0" * 100, "holds no prompts"),
    "field.csv": (b"text\n" + b"a" * 200000, "cannot be read as prompts (field larger"),
    "long.json": (json.dumps([{"text": "a" * 10000}]).encode(), "text has 10000 letters; give at most 200"),
    "control.json": (b'[{"text": "a\\u001b[31mb"}]', r"text is 'a\x1b[31mb', which cannot be printed"),
    "surrogate.json": (b'[{"name": "\\ud800", "text": "liver"}]', r"name is '\ud800', which cannot be printed"),
    "direction.json": (b'[{"name": "a\\u202eb", "text": "liver"}]', r"name is 'a\u202eb', which cannot be printed"),
    "formula.json": (b'[{"name": "=cmd|calc!A0", "text": "liver"}]', "which spreadsheets take for a formula"),
    "formula.csv": (b"text\n@SUM(A1)\n", "which spreadsheets take for a formula"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_of_prompts_has_one_clear_error(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_prompts(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}")
    assert len(str(error.value)) < 600


ENTRIES = {
    "folder.json": (lambda path: path.mkdir(), "is a folder, a pipe or a device"),
    "pipe.json": (os.mkfifo, "is a folder, a pipe or a device"),
    "device.json": (lambda path: path.symlink_to("/dev/zero"), "is a folder, a pipe or a device"),
    "loop.json": (lambda path: path.symlink_to(path.name), "cannot be read|symbolic links"),
    "none.json": (lambda _: None, "No such file"),
    "huge.json": (lambda path: os.truncate(path, MAX_FILE_BYTES + 1) if not path.touch() else None, "has 67 MB; give"),
}


@pytest.mark.parametrize("read", [read_prompts, read_organs])
@pytest.mark.parametrize("name", ENTRIES)
def test_entry_that_is_no_file_of_a_sensible_size_is_refused(tmp_path, name, read):
    make, message = ENTRIES[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_thousands_of_prompts_are_numbered(tmp_path):
    """Formerly each one searched all others for a free number."""
    rows = [{"case": f"p{n % 9}", "points": [[1, 1, 1]]} for n in range(30000)]
    book = PromptBook(prompts_of(tmp_path, rows))
    assert [prompt.class_id for prompt in book.prompts] == list(range(1, 30001))
    assert len(book.prompted([{"case": f"p{n}"} for n in range(9)])) == 9


# Names

ELSEWHERE = ("../../x", "/etc/x", "..", "c/d", "C:\\x", "$\\frac{$", "x" * 200, "NUL", "a\tb", "<i>", "日本", " ", "-")


def test_no_result_leaves_the_folder(tmp_path, weights):
    write_image(tmp_path / "in" / "p1.nii.gz")
    rows = [{"name": name, "box": [2, 2, 2, 22, 20, 24]} for name in ELSEWHERE if name != "-"]
    infer(tmp_path, weights, prompts=prompts_of(tmp_path, rows), overlaps="files")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "prompts.json"}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["p1.nii.gz"]
    written = list((tmp_path / "out").rglob("*"))
    assert all(path.is_file() and path.name.isprintable() and len(path.name.encode()) <= 255 for path in written)
    table = pd.read_csv(tmp_path / "out" / "prompts.csv")
    assert len(table) == len(rows)
    assert len(list((tmp_path / "out").glob("p1_*_seg.nii.gz"))) == (table["shared_voxels"] > 0).sum() == len(rows)


@pytest.mark.parametrize("case", ["../p1", "/etc/passwd", "p1/..", "p1.nii.gz"])
def test_case_that_is_a_path_is_no_case(tmp_path, weights, case):
    write_image(tmp_path / "in" / "p1.nii.gz")
    prompts = prompts_of(tmp_path, [{"case": case, "text": "liver"}])
    assert "has prompts for the case" in message_of(infer, tmp_path, weights, prompts=prompts)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Cyst", "cyst"], "the mask of the prompt 'cyst' of p1 would have the same file as that of 'Cyst' of p1"),
        (["a b", "a_b"], "the mask of the prompt 'a_b' of p1 would have the same file as that of 'a b' of p1"),
        (["a/b", "a:b"], "the same file as that of 'a/b' of p1"),
        (["lesion"], "the mask of the prompt 'lesion' of p1 would have the same file as the map of p1_lesion"),
        (["lesion_2"], "the same file as that of 'lesion_2' of p1"),
    ],
)
def test_names_whose_files_would_replace_each_other_are_refused(names, message):
    book = PromptBook("prompts.json")
    cases = ["p1", "p1_lesion"]
    rows = [{"name": name, "case": "p1", "class_id": n} for n, name in enumerate(names, start=1)]
    rows += [{"name": "2", "case": "p1_lesion", "class_id": 9}]
    book.__dict__["prompts"] = [Prompt(points=((1, 1, 1),), **row) for row in rows]
    with pytest.raises(InputError, match=re.escape(message)):
        book.prompted([{"case": case} for case in cases])


# Prompts that lie far away


@pytest.mark.parametrize("space", ["voxel", "RAS", "LPS"])
def test_far_points_fail_their_case_and_far_boxes_are_cut(tmp_path, weights, space):
    for case in ("p1", "p2"):
        write_image(tmp_path / "in" / f"{case}.nii.gz")
    rows = [
        {"case": "p1", "points": [[1e300, -1e300, 5]], "space": space},
        {"case": "p2", "box": [-1e300] * 3 + [1e300] * 3, "space": space},
    ]
    with pytest.raises(SystemExit):
        infer(tmp_path, weights, prompts=prompts_of(tmp_path, rows))
    failed = pd.read_csv(tmp_path / "out" / "failed.csv", index_col="case")["reason"]
    assert failed.index.tolist() == ["p1"]
    assert "lies outside of the image" in failed["p1"]
    assert pd.read_csv(tmp_path / "out" / "prompts.csv")["case"].tolist() == ["p2"]


# Maps of another bundle

MAPS = {
    "empty": (lambda path: path.touch(), "cannot be read whole (0 bytes)"),
    "words": (lambda path: path.write_text("no map"), "cannot be read whole"),
    "folder": (lambda path: path.mkdir(), "is a folder, a pipe or a device"),
    "pipe": (os.mkfifo, "is a folder, a pipe or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a folder, a pipe or a device"),
    "zeros": (lambda path: write_map(path, np.zeros(SHAPE)), "holds none of the 13 organs"),
    "fractions": (lambda path: write_map(path, np.full(SHAPE, 0.5)), "holds 0.5, not a class id"),
    "not_a_number": (lambda path: write_map(path, np.full(SHAPE, np.nan)), "holds nan, not a class id"),
    "infinite": (lambda path: write_map(path, np.full(SHAPE, np.inf)), "holds inf, not a class id"),
    "negative": (lambda path: write_map(path, np.full(SHAPE, -6.0)), "holds none of the 13 organs"),
    "huge_ids": (lambda path: write_map(path, np.full(SHAPE, 2.0**30)), "holds none of the 13 organs"),
    "four_axes": (lambda path: write_map(path, np.ones((*SHAPE, 2))), "need (X, Y, Z)"),
    "other_shape": (
        lambda path: write_map(path, np.ones((26, 24, 27))),
        "does not lie on the grid of the image: shape",
    ),
    "shifted": (lambda path: write_map(path, np.ones(SHAPE), shift=9), "does not lie on the grid of the image: centre"),
    "turned": (lambda path: write_map(path, np.ones(SHAPE), flip=-1), "does not lie on the grid of the image: axes"),
    "good": (lambda path: write_map(path, np.ones(SHAPE)), ""),
}


def write_map(path, labels, *, shift=0, flip=1):
    affine = nib.affines.from_matvec(np.diag([2.0 * flip, 2, 3]), [shift, 0, 0])
    nib.save(nib.Nifti1Image(labels.astype(np.float32), affine), path)


def test_bad_maps_fail_their_cases_alone(tmp_path, weights):
    (tmp_path / "maps").mkdir()
    for name, (make, _) in MAPS.items():
        write_image(tmp_path / "in" / f"{name}.nii.gz")
        make(tmp_path / "maps" / f"{name}_seg.nii.gz")
    write_image(tmp_path / "in" / "loop.nii.gz")
    (tmp_path / "maps" / "loop_seg.nii.gz").symlink_to("loop_seg.nii.gz")
    with pytest.raises(SystemExit):
        infer(tmp_path, weights, "auto_box.json", maps=str(tmp_path / "maps"))
    failed = pd.read_csv(tmp_path / "out" / "failed.csv", index_col="case")["reason"]
    for name, (_, message) in MAPS.items():
        assert (name in failed.index) == bool(message)
        if message:
            assert message in failed[name]
            assert failed[name].startswith(str(tmp_path / "maps" / f"{name}_seg.nii.gz")), failed[name]
    table = pd.read_csv(tmp_path / "out" / "prompts.csv")
    assert table[["case", "name"]].to_numpy().tolist() == [["good", "spleen"]]


# Stored texts


@pytest.mark.parametrize("value", [torch.full((8,), torch.nan), torch.ones(7), torch.ones(1, 8), torch.ones(8).long()])
def test_damaged_features_of_texts_are_refused(tmp_path, weights, network, value):
    write_image(tmp_path / "in" / "p1.nii.gz")
    write_text_features(network, ["liver"], tmp_path / "texts.pt")
    content = torch.load(tmp_path / "texts.pt", weights_only=True)
    torch.save({**content, "features": {"liver": value}}, tmp_path / "texts.pt")
    with pytest.raises(SystemExit, match=r"texts.pt: holds (no text features|the text features of other weights)"):
        infer(tmp_path, weights, organs=organs(tmp_path), text_features=str(tmp_path / "texts.pt"))


def organs(folder):
    (folder / "organs.json").write_text('{"6": "liver"}')
    return str(folder / "organs.json")
