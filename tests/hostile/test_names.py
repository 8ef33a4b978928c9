"""Files with names that break tables, pictures, logs or other systems: no case is lost, and all results can be read."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from scripts.common.names import safe_name
from tests.conftest import ROOT, TINY, TINY_OF, command_line, run_bundle
from tests.scripts.io.volume_files import write_image

POINTWISE = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 14, "kernel_size": 1}
"""A network that takes no time: what is tried here happens before and after it."""
SMALL = {"network_def": POINTWISE, "spacing_mm": TINY["spacing_mm"], "patch_size": [64, 64, 64], "num_workers": 0}
CASE_OF = {
    os.fsdecode(b"p9\xe9"): "p9_",
    "a\nb": "a_b",
    "q\"u,o't;": "q_u,o't;",
    r"a$\frac{$": "a$_frac{$",
    "x" * 248: safe_name("x" * 248),
    "-x": "_x",
    "CON": "_CON",
    "A": "A",
    "a": "a_2",
    " b ": "_b_",
    "=1+1": "_1+1",
    "日本 %s {}": "日本 %s {}",
    "<b>&amp;": "_b_&amp;",
    "\x1b[31m": "_[31m",
}
"""Name of a file to the name of its case."""


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_safe(folder):
    for path in folder.rglob("*"):
        assert path.name.isprintable()
        assert not path.name.startswith((".tmp", "-"))
        assert len(path.name.encode()) <= 255


def write_copies(source, folder, names):
    folder.mkdir()
    for name in names:
        shutil.copy(source, folder / f"{name}.nii.gz")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("scripts.preview.png.DPI", 20)


@pytest.fixture(scope="module")
def ckpt_path(tmp_path_factory):
    """Random weights."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    torch.save(torch.nn.Conv3d(1, 14, 1).state_dict(), path)
    return str(path)


def test_images_of_any_name_are_segmented_or_fail_by_name(ckpt_path, tmp_path):
    write_copies(write_image(tmp_path / "image.nii.gz"), tmp_path / "in", CASE_OF)
    bad = os.fsdecode(b"bad \xff\n")
    (tmp_path / "in" / f"{bad}.nii.gz").write_bytes(b"")
    settings = {**SMALL, "ckpt_path": ckpt_path, "input": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(SystemExit, match=r"1 of 15 cases failed:\n  bad __: ") as end:
        run_bundle("swin_bob_btcv", ["inference.json"], kind="infer", **settings)
    assert str(end.value).encode().decode() == str(end.value)
    (failed,) = rows(tmp_path / "out" / "failed.csv")
    reason = rf"{tmp_path}/in/bad \udcff\n.nii.gz: cannot be read whole (0 bytes); copy or export it again."
    assert failed == {"case": "bad __", "reason": reason}
    assert [row["case"] for row in rows(tmp_path / "out" / "volumes.csv")] == sorted(CASE_OF.values())
    for case in CASE_OF.values():
        assert (tmp_path / "out" / f"{case}_seg.nii.gz").is_file()
        assert (tmp_path / "out" / f"{case}_preview.png").is_file()
    assert_safe(tmp_path / "out")


def test_label_maps_of_any_name_are_measured_reported_and_cleaned(label_data, tmp_path):
    source = sorted(label_data.glob("*.nii.gz"))
    (tmp_path / "in").mkdir()
    for number, name in enumerate(CASE_OF):
        shutil.copy(source[number % len(source)], tmp_path / "in" / f"{name}.nii.gz")
    options = {**TINY_OF["solf_filter"], "qc": True}
    folders = {"output_dir": str(tmp_path / "fit"), "ckpt_dir": str(tmp_path)}
    run_bundle("solf_filter", ["train.json"], dataset_dir=str(tmp_path / "in"), **folders, **options)
    assert set(pd.read_parquet(tmp_path / "fit" / "features.parquet")["case"]) == set(CASE_OF.values())
    options = {"workers": 0, "qc": False}
    folders = {"output_dir": str(tmp_path / "out"), "ckpt_path": str(tmp_path / "model.pt")}
    run_bundle("solf_filter", ["inference.json"], input=str(tmp_path / "in"), **folders, **options)
    assert {row["case"] for row in rows(tmp_path / "out" / "decisions.csv")} == set(CASE_OF.values())
    cleaned = {path.name.removesuffix("_cleaned.nii.gz") for path in (tmp_path / "out").glob("*.nii.gz")}
    assert cleaned == set(CASE_OF.values())
    assert_safe(tmp_path / "fit")
    assert_safe(tmp_path / "out")


@pytest.mark.hostile
@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_program_writes_names_in_any_locale(ckpt_path, tmp_path, locale):
    names = [os.fsdecode(b"p9\xe9"), "日本", "a\nb"]
    write_copies(write_image(tmp_path / "image.nii.gz"), tmp_path / "in", names)
    for name in (os.fsdecode(b"bad\xff"), "bad 日本"):
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(b"")
    settings = {**SMALL, "ckpt_path": ckpt_path, "input": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    arguments = ["--config_file", "configs/inference.json", *command_line(settings)]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *arguments],
        cwd=ROOT / "bundles" / "swin_bob_btcv",
        capture_output=True,
        env={**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": ""},
    )
    assert done.returncode == 1, done.stderr
    assert b"2 of 5 cases failed:" in done.stderr
    assert b"Traceback" not in done.stderr
    assert {row["case"] for row in rows(tmp_path / "out" / "failed.csv")} == {"bad_", "bad 日本"}
    assert {row["case"] for row in rows(tmp_path / "out" / "volumes.csv")} == {"p9_", "日本", "a_b"}


def test_names_in_a_datalist_are_made_safe_too(tmp_path):
    from scripts.data.inputs import list_cases

    names = ["x" * 248, "-x", "CON", r"a$\frac{$"]
    (tmp_path / "list.json").write_text(json.dumps({"test": [f"{name}.nii" for name in names]}))
    cases = list_cases(tmp_path / "list.json", output_dir=tmp_path / "out")
    assert [case["case"] for case in cases] == [safe_name(name) for name in names]
