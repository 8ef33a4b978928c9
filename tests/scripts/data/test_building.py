import re
import shutil
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureTyped

from scripts.common.errors import InputError
from scripts.data.building import build_store
from scripts.data.datasets import StoredCaseDataset
from scripts.io.loading import LoadVolumed

Usage = namedtuple("Usage", "total used free")


def write(path, seed=0):
    volume = np.random.default_rng(seed).normal(size=(20, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return {"image": str(path), "case": path.stem}


@pytest.fixture
def cases(tmp_path):
    return [write(tmp_path / f"case{seed}.nii", seed) for seed in range(4)]


def steps():
    return Compose([LoadVolumed("image"), EnsureTyped("image")])


def build(tmp_path, *sections, num_workers=0):
    build_store(sections, [steps()] * len(sections), cache_dir=tmp_path / "cache", num_workers=num_workers)


def prepared(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.pt"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_sections_are_prepared_and_used_by_datasets(num_workers, cases, tmp_path, caplog):
    with caplog.at_level("INFO"):
        build(tmp_path, cases[:3], cases[3:], num_workers=num_workers)
    assert "4 of 4 cases are prepared, 0 failed" in caplog.text
    dataset = StoredCaseDataset(cases, steps(), cache_dir=tmp_path / "cache")
    assert prepared(tmp_path) == sorted(map(dataset.file_of, cases))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("bad", [[0], [0, 2, 3]])
def test_bad_cases_are_named_and_the_others_prepared(bad, num_workers, cases, tmp_path, caplog):
    for number in bad:
        Path(cases[number]["image"]).write_bytes(b"no image")
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        build(tmp_path, cases, num_workers=num_workers)
    heading, *lines = str(ended.value).splitlines()
    assert heading == f"{len(bad)} of 4 cases failed:"
    assert [line.split(":")[0].strip() for line in lines] == [f"case{number}" for number in bad]
    assert f"{4 - len(bad)} of 4 cases are prepared, {len(bad)} failed" in caplog.text
    assert len(prepared(tmp_path)) == 4 - len(bad)


def test_all_cases_may_be_bad(cases, tmp_path):
    for case in cases:
        Path(case["image"]).unlink()
    with pytest.raises(SystemExit, match=r"^4 of 4 cases failed:"):
        build(tmp_path, cases)


def test_second_run_prepares_only_what_is_missing_or_damaged(cases, tmp_path, caplog):
    build(tmp_path, cases)
    first, second, *others = prepared(tmp_path)
    times = [path.stat().st_mtime_ns for path in others]
    first.unlink()
    volume = second.with_suffix(".image.b2nd")
    whole = volume.read_bytes()
    volume.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    caplog.clear()
    with caplog.at_level("INFO"):
        build(tmp_path, cases)
    assert "3 of 4 cases are prepared already" in caplog.text
    assert f"{second}: cannot be read ({volume.name} has another checksum); the case is prepared again" in caplog.text
    assert len(prepared(tmp_path)) == 4
    assert volume.read_bytes() == whole
    assert [path.stat().st_mtime_ns for path in others] == times


def test_too_little_space_is_refused_before_the_second_case(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 20_000))
    message = "cache: 3 cases need about 0.0 GB, 0.0 GB are free; free space, or set another cache_dir."
    with pytest.raises(InputError, match=re.escape(message)):
        build(tmp_path, cases)
    assert len(prepared(tmp_path)) == 1


def test_finished_store_needs_no_space(cases, tmp_path, monkeypatch):
    build(tmp_path, cases)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 0))
    build(tmp_path, cases)
