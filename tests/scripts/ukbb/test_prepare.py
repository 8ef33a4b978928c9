import csv
import os
import shutil
import subprocess
import sys

import pytest

from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from scripts.ukbb.prepare import find_cases, main
from tests.conftest import ROOT


@pytest.fixture
def cohort(sound, tmp_path):
    """A subject scanned twice, one cut short, and files that are no archives."""
    folder = tmp_path / "in" / "10"
    folder.mkdir(parents=True)
    for name in ("1000001_20201_2_0.zip", "1000001_20201_3_0.zip"):
        shutil.copy(sound, folder / name)
    (folder / "1000002_20201_2_0.zip").write_bytes(sound.read_bytes()[:-999])
    shutil.copy(sound, folder / "1000001_20204_2_0.zip")
    (folder / "notes.txt").touch()
    return folder.parent


def run(cohort, out, *more):
    return main([str(cohort), str(out), "--workers", "0", "--slice_spacing_mm", "18", *more])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bad_archives_do_not_stop_the_others(cohort, tmp_path, caplog):
    out = tmp_path / "out"
    assert run(cohort, out) == 1
    kept = ["1000001_2_0", "1000001_3_0"]
    assert names(out / "images") == sorted(f"{name}.{kind}" for name in kept for kind in ("nii.gz", "json"))
    assert names(out / "qc") == [f"{name}.png" for name in kept]
    assert [row["case"] for row in rows(out / "subjects.csv")] == kept
    assert [row["instance"] for row in rows(out / "subjects.csv")] == ["2", "3"]
    assert len(rows(out / "stations.csv")) == 12
    (failed,) = rows(out / "failed.csv")
    assert failed["case"] == "1000002_2_0"
    assert "1000002_20201_2_0.zip: not a whole zip file" in failed["reason"]
    assert "left out 1 files not named like 1234567_20201_2_0.zip" in caplog.text


def test_run_is_resumed_and_only_what_changed_is_done_again(cohort, tmp_path, sound):
    out = tmp_path / "out"
    run(cohort, out)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    (out / "qc" / "1000001_3_0.png").unlink()
    shutil.copy(sound, cohort / "10" / "1000002_20201_2_0.zip")
    assert run(cohort, out) == 0
    again = {path.name for path in (out / "images").iterdir() if path.stat().st_mtime_ns != times.get(path.name)}
    assert {name.split(".")[0] for name in again} == {"1000001_3_0", "1000002_2_0"}
    assert not (out / "failed.csv").exists()
    assert len(rows(out / "subjects.csv")) == 3


def test_other_settings_start_afresh(cohort, tmp_path):
    out = tmp_path / "out"
    run(cohort, out)
    before = (out / "images" / "1000001_2_0.nii.gz").stat().st_mtime_ns
    run(cohort, out, "--match", "false")
    assert (out / "images" / "1000001_2_0.nii.gz").stat().st_mtime_ns != before


def test_folder_of_aggregates_with_other_files_is_refused_before_an_archive_is_read(cohort, tmp_path, capsys):
    (tmp_path / "out" / "aggregate").mkdir(parents=True)
    (tmp_path / "out" / "aggregate" / "names.csv").touch()
    with pytest.raises(SystemExit, match="2"):
        run(cohort, tmp_path / "out", "--aggregate_only", "true")
    assert "holds 'names.csv', which is no aggregated result; move it away" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["aggregate"]


def test_aggregate_only_leaves_no_table_with_names(cohort, tmp_path):
    out = tmp_path / "out"
    run(cohort, out)
    assert run(cohort, out, "--aggregate_only", "true") == 1
    assert not (out / "subjects.csv").exists()
    assert not (out / "stations.csv").exists()
    assert rows(out / "aggregate" / "aggregate.csv")[0] == {"finding": "all", "archives": "<5"}


def test_one_archive_by_the_documented_command_on_other_processes(sound, tmp_path):
    words = ["-m", "scripts.prepare_ukbb", str(sound), str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "prepared 1 of 1 archives" in done.stderr
    assert names(tmp_path / "out" / "qc") == ["1000001_2_0.png"]


def test_two_archives_of_one_case_are_refused(cohort):
    (cohort / "11").mkdir()
    shutil.copy(cohort / "10" / "1000001_20201_2_0.zip", cohort / "11")
    with pytest.raises(InputError, match=r"10/1000001_20201_2_0.zip, .*11/1000001_20201_2_0.zip: 2 archives of one"):
        find_cases(cohort)


BAD = {
    "absent": (lambda t: [t / "nothing", t / "out"], "nothing: no such file; give a folder of archives such as"),
    "no archives": (lambda t: [t, t / "out"], "no archives such as 1234567_20201_2_0.zip; give field 20201"),
    "flag": (lambda t: [t / "in", t / "out", "--fix_swaps", "yes"], "fix_swaps is 'yes': give true or false"),
    "spacing": (
        lambda t: [t / "in", t / "out", "--slice_spacing_mm", "0"],
        "slice_spacing_mm is 0.0: give 0.5 to 20.0",
    ),
    "workers": (lambda t: [t / "in", t / "out", "--workers", "-2"], "workers is -2: give a whole number from -1"),
    "out is a file": (lambda t: [t / "in", t / "in" / "1_20201_2_0.zip"], "1_20201_2_0.zip: cannot be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_command_ends_with_code_2_and_one_line(tmp_path, capsys, name):
    words, text = BAD[name]
    if name != "no archives":
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "1_20201_2_0.zip").write_bytes(b"x")
    with pytest.raises(SystemExit) as error:
        main(list(map(str, words(tmp_path))))
    assert error.value.code == 2
    assert text in capsys.readouterr().err


def test_folder_in_use_is_refused(cohort, tmp_path, capsys):
    with FolderLock(tmp_path / "out"), pytest.raises(SystemExit):
        run(cohort, tmp_path / "out")
    assert "another run is using this folder" in capsys.readouterr().err
