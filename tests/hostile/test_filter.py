"""Bad settings, files and label maps for the label filter: none is silent, and good label maps are done."""

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError, root_cause
from scripts.common.organs import ORGANS
from scripts.models.weight_files import save
from scripts.solf import transforms
from scripts.solf.filter import LabelFilter
from scripts.solf.fitting import fit_thresholds
from scripts.solf.measuring import case_features
from scripts.solf.tables import cohort_table
from tests.conftest import PAPER, ROOT, command_line, run_bundle
from tests.scripts.solf.conftest import AFFINE, small_map

FIT, CLEAN, EVALUATE = ["train.json"], ["inference.json"], ["inference.json", "evaluate.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A filter that was fitted to 60 small label maps."""
    maps = [(f"s{n:02d}", case_features(small_map(n), AFFINE, ORGANS)) for n in range(60)]
    network, path = LabelFilter(), tmp_path_factory.mktemp("model") / "model.pt"
    network.thresholds = fit_thresholds(cohort_table(maps, ORGANS), organs=ORGANS)
    save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A folder of three label maps: a, b and c."""
    folder = tmp_path_factory.mktemp("labels")
    for n, name in enumerate("abc"):
        nib.save(nib.Nifti1Image(small_map(n), AFFINE), folder / f"{name}.nii.gz")
    return folder


def settings_of(configs, labels, model, folder):
    given = {"output_dir": str(folder / "out"), "workers": 0}
    if configs == FIT:
        folders = {"dataset_dir": str(labels), "ckpt_dir": str(folder / "models")}
        return {**given, **folders, **PAPER, "epsilon_percent": 40, "qc": False}
    return {**given, "input": str(labels), "ckpt_path": str(model)}


def text(content, name="file"):
    """Write a text file when the test starts, and give its path."""

    def make(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder / name)

    return make


def folder_at(*parts, file=""):
    """Make a folder, perhaps with a file, and give the output folder."""

    def make(folder):
        folder.joinpath(*parts).mkdir(parents=True)
        if file:
            folder.joinpath(*parts, file).touch()
        return str(folder / "out")

    return make


def link_at(*parts, target="."):
    def make(folder):
        folder.joinpath(*parts[:-1]).mkdir(parents=True)
        folder.joinpath(*parts).symlink_to(target)
        return str(folder / "out")

    return make


def made(table, what):
    """Rows for the same content as `label_table` and as `label_names`."""
    return [
        (table, {name: text(content)}, message) for name in ("label_table", "label_names") for content, message in what
    ]


BAD_TABLES = [
    ("{not JSON", "file: is not a label table (Expecting property name"),
    ("[1, 2]", "file: is not a label table ('list' object has no attribute"),
    ("[" * 100_000, "file: is not a label table (maximum recursion depth"),
    (b"\xff\xfe\x00", "file: is not a label table ('utf-8' codec can't decode"),
    ("{}", "file: holds no label; give ids from 1 to 65535."),
    ('{"1": ["spleen"]}', "file: is not a label table"),
    ('{"1.5": "spleen"}', "file: is not a label table"),
    ('{"65536": "spleen", "1": "liver"}', "file: holds the id 65536; give ids from 1 to 65535."),
    ('{"-1": "spleen", "1": "liver"}', "file: holds the id -1; give ids from 1 to 65535."),
    ('{"1": "spleen", "2": "spleen"}', "file: the name 'spleen' is empty or repeats; give each label a name of its"),
    ('{"1": "spleen", "1": "liver"}', "file: is not a label table (an id repeats)"),
]
BAD_STARTS = [
    (CLEAN, {"output_dir": folder_at("out", "qc", file="mine.txt"), "qc": True}, "qc: holds mine.txt, so it is not a"),
    (FIT, {"output_dir": folder_at("out", "qc", file="mine.txt"), "qc": True}, "qc: holds mine.txt, so it is not a"),
    (CLEAN, {"output_dir": link_at("out", "qc"), "qc": True}, "qc: is not a folder, so it is not a report; move it"),
    (CLEAN, {"output_dir": link_at("out", "qc", target="none"), "qc": True}, "qc: is not a folder, so it is not a"),
    (CLEAN, {"output_dir": folder_at("out", "decisions.csv")}, "decisions.csv: is a folder, where a result will be"),
    (FIT, {"output_dir": folder_at("models", "model.pt")}, "model.pt: is a folder, where a result will be written"),
    (CLEAN, {"output_dir": text("")}, "file: cannot be written (File exists); set another output folder"),
    (CLEAN, {"output_dir": lambda _: "/proc/out"}, "/proc/out: cannot be written (No such file or directory)"),
    (FIT, {"ckpt_dir": text("")}, "file: cannot be written (File exists); set another ckpt_dir"),
    (
        CLEAN,
        {"ckpt_path": lambda _: "none.pt"},
        "none.pt: no such file; no thresholds come with the bundle: fit",
    ),
    (CLEAN, {"ckpt_path": text("")}, "file: is empty: download or save it again."),
    *made(CLEAN, BAD_TABLES),
    (CLEAN, {"label_table": lambda _: "none.json"}, "none.json: is not a label table ([Errno 2] No such file"),
    (CLEAN, {"label_table": text('{"1": "tonsil_right"}')}, "class 1 'tonsil_right' has no contralateral class"),
    (
        CLEAN,
        {"label_table": text('{"1": "spleen"}')},
        "fitted with another label table than these 1 labels",
    ),
    (CLEAN, {"label_names": lambda _: "none.json"}, "none.json: is not a label table ([Errno 2] No such file"),
    (CLEAN, {"label_names": text('{"1": "splean"}')}, "none of its 1 names, such as 'splean', is one of"),
    (EVALUATE, {"known_errors": lambda _: "none.csv"}, "none.csv: cannot be read ([Errno 2] No such file"),
    (EVALUATE, {"known_errors": lambda folder: str(folder)}, "cannot be read ([Errno 21] Is a directory"),
    (EVALUATE, {"known_errors": text("case,organ\na,livver\n")}, 'the row "a,livver" has neither a label of the'),
    (EVALUATE, {"known_errors": text("case,label\na,999\n")}, 'the row "a,999" has neither a label of the'),
    (
        EVALUATE,
        {"known_errors": text("case,label\nnobody,5\n")},
        "none of its cases, such as 'nobody', is one of the 3",
    ),
    (EVALUATE, {"known_errors": text("case,label\n")}, "none of its cases, such as None, is one of the 3"),
    (EVALUATE, {"reference": lambda _: "nowhere"}, "nowhere: no such file or folder"),
    (EVALUATE, {"reference": text("x", "none.nii.gz")}, "none.nii.gz: has no label map with the name of one in"),
    (EVALUATE, {"reference_names": text("{}")}, "file: holds no label; give ids from 1 to 65535."),
    (
        CLEAN,
        {"label_table": text('{"255": "spleen", "1": "liver"}')},
        "file: the label 'spleen' has the id 255, which is ignore_id, the value of ignored voxels; set ignore_id to",
    ),
    (CLEAN, {"ignore_id": lambda _: 5}, "the table of the 72 organs: the label 'liver' has the id 5, which is"),
    (CLEAN, {"ignore_id": lambda _: 70000}, "ignore_id is 70000: give a whole number from 1 to 65535"),
    (CLEAN, {"scheduler": lambda _: "nowhere"}, "scheduler is 'nowhere': give an address such as tcp://host:8786."),
    (CLEAN, {"scheduler": lambda _: "tcp://127.0.0.1:9"}, "scheduler tcp://127.0.0.1:9: no Dask scheduler answers"),
    (CLEAN, {"scheduler": lambda _: "tls://127.0.0.1:9"}, "no certificates for tls; set the variables DASK_"),
    (CLEAN, {"workers": lambda _: -5}, "workers is -5: give a whole number from -1"),
    (CLEAN, {"workers": lambda _: 10**6}, "workers is 1000000: this machine has"),
    (CLEAN, {"drop_share": lambda _: float("nan")}, "drop_share is nan: give a number from 0 to 1"),
    (FIT, {"features": lambda _: ["sphericity"] * 2}, "features is ['sphericity', 'sphericity']: give some of"),
    (FIT, {"votes": lambda _: 4}, "votes is 4, above the 3 of features: give 3 or less"),
    (FIT, {"rule": lambda _: "sigma"}, "rule is 'sigma': give one of percentile, iqr, mad, deciles, ranges"),
    (FIT, {"mad_factor": lambda _: float("nan")}, "mad_factor is nan: give a number from 0"),
    (FIT, {"epsilon_percent": lambda _: 5e-324}, "dataset has 3 label maps, the rule percentile needs 100000000"),
]


def never(*_, **__):
    raise AssertionError("a label map was read")


def change_settings(makers, folder):
    return {name: make(folder) if callable(make) else make for name, make in makers.items()}


@pytest.mark.parametrize(("configs", "makers", "message"), BAD_STARTS, ids=[row[-1][:30] for row in BAD_STARTS])
def test_bad_settings_and_files_are_refused_before_a_label_map_is_read(
    labels, model, tmp_path, monkeypatch, configs, makers, message
):
    monkeypatch.setattr(transforms, "read_nifti", never)
    bad = change_settings(makers, tmp_path)
    before = {path.name for path in tmp_path.rglob("*")}
    with pytest.raises((InputError, RuntimeError, ValueError)) as error:
        run_bundle("solf_filter", configs, **{**settings_of(configs, labels, model, tmp_path), **bad})
    assert isinstance(root_cause(error.value), InputError)
    assert message in str(root_cause(error.value))
    assert {path.name for path in tmp_path.rglob("*")} - before <= {"out", "models", "journal.sqlite"}


@pytest.mark.hostile
@pytest.mark.parametrize("part", ["qc: holds mine.txt", "'tonsil_right'", "such as 'nobody'", "no Dask scheduler"])
def test_command_refuses_bad_settings_in_one_line(labels, model, tmp_path, part):
    configs, makers, message = next(row for row in BAD_STARTS if part in row[-1])
    given = {**settings_of(configs, labels, model, tmp_path), **change_settings(makers, tmp_path)}
    if configs == EVALUATE:
        given.pop("workers")
    files = [str(ROOT / "bundles" / "solf_filter" / "configs" / name) for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *command_line(given)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.count("error: ") == 1
    assert message in process.stderr


def changed(*values, dtype=np.uint8):
    """Return a label map whose first voxels hold other values."""
    label = small_map(1).astype(dtype)
    label[0, 0, : len(values)] = values
    return label


def as_bytes(dim=None, affine_value=None):
    """Return the bytes of a NIfTI file with another header."""
    header = bytearray(nib.Nifti1Image(small_map(1), AFFINE).to_bytes())
    if dim:
        header[42:48] = struct.pack("<3h", *dim)
    if affine_value is not None:
        header[280:284] = struct.pack("<f", affine_value)
    return bytes(header)


RGB = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
SHEARED = AFFINE + np.eye(4, k=1) * [0, 2, 0, 0]
PACKED = gzip.compress(as_bytes())
BAD_MAPS = {
    "an image": (np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32), "give a label map, not an image."),
    "NaN": (changed(np.nan, dtype=np.float32), "holds values from nan to nan, labels are 0 to 65535"),
    "infinite": (changed(np.inf, dtype=np.float32), "holds values from 0 to inf, labels are 0 to 65535"),
    "negative": (changed(-1, dtype=np.int16), "holds values from -1 to 66, labels are 0 to 65535"),
    "256": (changed(256, dtype=np.int16), "holds 1 label that the label table lacks: 256; set label_table"),
    "2^40": (changed(2**40, dtype=np.int64), "holds values from 0 to 1.09951e+12, labels are 0 to 65535"),
    "2^63": (changed(2**63, dtype=np.uint64), "holds values from 0 to 9.22337e+18, labels are 0 to 65535"),
    "fraction": (changed(1.5, dtype=np.float32), "holds 1.5, not a label; give a label map, resampled with nearest"),
    "unknown": (changed(200, 201), "holds 2 labels that the label table lacks: 200, 201; set label_table"),
    "empty": (np.zeros((9, 9, 9), np.uint8), "holds no labels; leave it out."),
    "two volumes": (np.stack([small_map(1)] * 2, -1), "has shape (30, 24, 28, 2), need (X, Y, Z)"),
    "colours": (RGB, "need integers or floats; export it again."),
    "complex": (changed(dtype=np.complex64), "has values of type complex64, need integers or floats"),
    "sheared": ((small_map(1), SHEARED), "the affine is sheared: axes 0 and 1 meet at"),
    "2^31 voxels": (as_bytes(dim=(1291, 1291, 1291)), "its header announces 2151685523 bytes"),
    "no dimension": (as_bytes(dim=(-5, 4, 4)), "has shape (-5, 4, 4), need (X, Y, Z)"),
    "NaN affine": (as_bytes(affine_value=np.nan), "its affine holds NaN or infinity; correct the header."),
    "infinite spacing": (as_bytes(affine_value=np.inf), "its affine holds NaN or infinity; correct the header."),
    "truncated": (PACKED[:300], "cannot be read whole"),
    "corrupted": (PACKED[:-6] + bytes(6), "cannot be read whole"),
    "text": (b"a label map", "cannot be read whole (not a NIfTI file)"),
    "no bytes": (b"", "cannot be read whole (0 bytes)"),
    "folder": (os.mkdir, "is a folder, a pipe or a device; give a NIfTI file."),
    "pipe": (os.mkfifo, "is a folder, a pipe or a device; give a NIfTI file."),
    "broken link": (lambda path: path.symlink_to("none.nii"), "no such file where this link points"),
    "vanishes": (small_map(1), "no such file; correct the path."),
    "changes": (small_map(1), "changed while it was processed; run again."),
}
SPECKLED, ONE = np.zeros((66, 66, 66), np.uint8), np.ones((1, 1, 1), np.uint8)
SPECKLED[::3, ::3, ::3] = 5  # 10,648 components
GOOD_MAPS = {
    "good": small_map(2),
    "speckled": SPECKLED,
    "one voxel": ONE,
    "no background": np.full((9, 9, 9), 5, np.uint8),
    "floats": changed(dtype=np.float64),
    "255": changed(255),
    "a slice": np.pad(np.ones((9, 9, 1), np.uint8), [(2, 2), (2, 2), (0, 0)]),
    "two\nlines": small_map(3),
    "x" * 240: small_map(4),
}


def write_map(path, content):
    """Write a row of the tables: a label map, one with an affine, bytes, or what makes the file."""
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        array, affine = content if isinstance(content, tuple) else (content, AFFINE)
        nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)


def unsteady(path, **options):
    """Read a label map, which is removed before or changes after."""
    if "vanishes" in path:
        Path(path).unlink()
    volume = transforms_read_nifti(path, **options)
    if "changes" in path:
        os.utime(path)
    return volume


transforms_read_nifti = transforms.read_nifti


def test_bad_label_maps_fail_by_name_and_good_ones_are_done(model, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name, content in GOOD_MAPS.items():
        write_map(tmp_path / "in" / f"{name}.nii", content)
    for name, (content, _) in BAD_MAPS.items():
        packed = isinstance(content, bytes) and content[:2] == PACKED[:2]
        write_map(tmp_path / "in" / f"{name}.nii{'.gz' if packed else ''}", content)
    monkeypatch.setattr(transforms, "read_nifti", unsteady)
    with pytest.raises(SystemExit, match=rf"{len(BAD_MAPS)} of {len(BAD_MAPS) + len(GOOD_MAPS)} cases failed:"):
        run_bundle("solf_filter", CLEAN, **settings_of(CLEAN, tmp_path / "in", model, tmp_path), qc=True)
    out = tmp_path / "out"
    failed = pd.read_csv(out / "failed.csv", keep_default_na=False).set_index("case")["reason"].to_dict()
    assert failed.keys() == BAD_MAPS.keys()
    assert {name: failed[name] for name, (_, message) in BAD_MAPS.items() if message not in failed[name]} == {}
    assert [reason for reason in failed.values() if not reason.startswith(str(tmp_path / "in"))] == []
    decisions = pd.read_csv(out / "decisions.csv")
    assert decisions["case"].nunique() == len(GOOD_MAPS) == len(list(out.glob("*_cleaned.nii.gz")))
    assert {"good", "speckled", "one voxel", "two_lines"} < set(decisions["case"])
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_cohort_of_empty_label_maps_is_one_error(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_map(tmp_path / "in" / f"{name}.nii", np.zeros((9, 9, 9), np.uint8))
    with pytest.raises(RuntimeError) as error:
        run_bundle("solf_filter", CLEAN, **settings_of(CLEAN, tmp_path / "in", model, tmp_path))
    assert str(root_cause(error.value)).startswith("none of 2 label maps could be measured: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["failed.csv", "journal.sqlite"]


def test_cohort_of_one_is_fitted_by_fixed_ranges_and_cleaned(tmp_path):
    (tmp_path / "in").mkdir()
    write_map(tmp_path / "in" / "only.nii", small_map(1))
    settings = settings_of(FIT, tmp_path / "in", None, tmp_path)
    run_bundle("solf_filter", FIT, **{**settings, "rule": "ranges", "qc": True})
    cleaning = settings_of(CLEAN, tmp_path / "in", tmp_path / "models" / "model.pt", tmp_path)
    run_bundle("solf_filter", CLEAN, **{**cleaning, "output_dir": str(tmp_path / "cleaned"), "qc": True})
    assert pd.read_csv(tmp_path / "cleaned" / "decisions.csv")["case"].unique().tolist() == ["only"]


def test_evaluation_does_not_stop_at_bad_label_maps(model, tmp_path):
    for name, content in (("in/a", small_map(1)), ("in/b", b""), ("in/c", small_map(3)), ("in/d", small_map(4))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_map(tmp_path / f"{name}.nii", content)
    (tmp_path / "manual").mkdir()
    for name, content in (("a", small_map(1)), ("b", small_map(2)), ("c", (small_map(3), 2 * AFFINE)), ("d", b"")):
        write_map(tmp_path / "manual" / f"{name}.nii", content)
    settings = settings_of(EVALUATE, tmp_path / "in", model, tmp_path)
    with pytest.raises(SystemExit, match="3 of 4 cases failed"):
        run_bundle("solf_filter", EVALUATE, **settings, reference=str(tmp_path / "manual"))
    assert set(pd.read_csv(tmp_path / "out" / "scores.csv")["case"]) == {"a"}
    reasons = pd.read_csv(tmp_path / "out" / "failed.csv").set_index("case")["reason"]
    assert "cannot be read whole (0 bytes)" in reasons["b"]
    assert "the manual label map does not lie on the grid of the prediction" in reasons["c"]
    assert "manual/d.nii: cannot be read whole (0 bytes)" in reasons["d"]
