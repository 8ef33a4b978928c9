"""Bad datalists, folders of prepared cases and class names: refused in one message, before any work."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureTyped

from scripts.common.errors import InputError, reason
from scripts.data.datalist import load_datalist
from scripts.data.datasets import StoredCaseDataset
from scripts.io.loading import LoadVolumed
from tests.conftest import ROOT, bundle_workflow, command_line, run_bundle, training_settings, weights
from tests.scripts.io.volume_files import write_array, write_case

BTCV, BRATS = "swin_bob_btcv", "swin_bob_brats"


def entry(number, **more):
    return {"image": f"imagesTr/i{number}.nii.gz", "label": f"labelsTr/l{number}.nii.gz", **more}


def two(**more):
    """Sections of a sound datalist, some of them replaced."""
    return {"training": [entry(1)], "validation": [entry(2)], **more}


# Text that the message must contain, and the datalist: its bytes, or what is written as JSON.
NOT_JSON = {
    "not readable as JSON (Expecting value: line 1 column 1": b"",
    "not readable as JSON (Expecting value": b"\x00\x00\x00\x00",
    "not readable as JSON ('utf-8' codec can't decode": b'{"training": "\xe9"}',
    "not readable as JSON (Extra data": b"{} {}",
    "not readable as JSON (Invalid control character": b'{"training": ["a\n.nii"]}',
    "not readable as JSON (maximum recursion depth": b'{"training":' + b"[" * 100_000,
    "not readable as JSON (Exceeds the limit": b'{"training": ' + b"1" * 9999 + b"}",
    "not readable as JSON (key 'training' twice in one object)": b'{"training": [], "training": []}',
    "not readable as JSON (key 'image' twice in one object)": b'{"training": [{"image": "a.nii", "image": "b.nii"}]}',
    "not readable as JSON (NaN is not a number of JSON)": b'{"training": [{"fold": NaN}]}',
    "not readable as JSON (-Infinity is not a number of JSON)": b'{"numTraining": -Infinity}',
    "not readable as JSON (Expecting property name": b"{'training': []}",
}
WRONG_TYPES = {
    "holds a list, need an object": [],
    "holds a NoneType, need an object": None,
    "holds a str, need an object": "training",
    "training: is 3, need a list": two(training=3),
    "training: is None, need a list": two(training=None),
    "training: is True, need a list": two(training=True),
    "training: is a dict, need a list": two(training={"0": entry(1)}),
    "training[0]: is None, need an object": two(training=[None]),
    "training[0]: is a list, need an object": two(training=[[entry(1)]]),
    "training[0]: image is None, need one path": two(training=[{}]),
    "training[0]: image is a dict, need one path": two(training=[{**entry(1), "image": {}}]),
    "training[0]: image is 1e+300, need one path": two(training=[{**entry(1), "image": 1e300}]),
    "training[0]: label is False, need one path": two(training=[{**entry(1), "label": False}]),
    "training[0]: label is a list, need one path": two(training=[{**entry(1), "label": ["l.nii"]}]),
    "training[0]: patient is a list, need one name": two(training=[entry(1, patient=["p1"])]),
    "training[0]: patient is 1.5, need one name": two(training=[entry(1, patient=1.5)]),
    "training[0]: patient is True, need one name": two(training=[entry(1, patient=True)]),
    "training[0]: patient is 'p\\n1', need one name": two(training=[entry(1, patient="p\n1")]),
}
BAD_PATHS = {
    "image '../i.nii' is outside {root}; use a path inside it": "../i.nii",
    "image 'a/../../i.nii' is outside {root}": "a/../../i.nii",
    "image '/i.nii' is outside {root}": "/i.nii",
    "image '//etc/i.nii' is outside {root}": "//etc/i.nii",
    "image '{root}.nii' is outside {root}": "{root}.nii",
    "image is 'a\\x00.nii', need one path": "a\0.nii",
    "image is 'a\\r\\nb.nii', need one path": "a\r\nb.nii",
    "image is '\\u202eiin.a', need one path": "\u202eiin.a",
    "image is '\\ud800.nii', need one path": "\ud800.nii",
    "image is '', need one path": "",
    "image '.' is not a .nii or .nii.gz file": ".",
    "image 'imagesTr/' is not a .nii or .nii.gz file": "imagesTr/",
    "image '.nii' is not a .nii or .nii.gz file": ".nii",
    "image 'i.dcm' is not a .nii or .nii.gz file": "i.dcm",
    "image '~/i.txt' is not a .nii or .nii.gz file": "~/i.txt",
    "image 'https://x.org/i.zip' is not a .nii": "https://x.org/i.zip",
}
BAD_SETS = {
    "i1.nii.gz: 2 times in training": two(training=[entry(1), entry(1)]),
    "l1.nii.gz: 2 times in training": two(training=[entry(1), {**entry(3), "label": "labelsTr/l1.nii.gz"}]),
    "i2.nii.gz: in training and validation": two(training=[entry(1), {**entry(3), "image": "imagesTr/i2.nii.gz"}]),
    "l2.nii.gz: in training and validation": two(training=[{**entry(1), "label": "labelsTr/l2.nii.gz"}]),
    "i1.nii.gz: in training and test": two(test=[entry(1)["image"]]),
    "i1.nii.gz: as image and as label": two(training=[{**entry(1), "label": entry(1)["image"]}]),
    "l2.nii.gz: as image and as label": two(training=[{**entry(1), "image": entry(2)["label"]}]),
    "l1.nii.gz: as image and as label": two(test=[entry(1)["label"]]),
    "patient p: in training and validation": {
        "training": [entry(1, patient="p")],
        "validation": [entry(2, patient="p")],
    },
    "patient 7: in training and validation": {"training": [entry(1, patient=7)], "validation": [entry(2, patient="7")]},
    "patient p: in training and test": two(training=[entry(1, patient="p")], test=[entry(3, patient="p")]),
    "no training cases; list some": two(training=[]),
    "no validation cases; list some": {"training": [entry(1)]},
}


def write_list(root, content):
    root.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).replace("{root}", str(root)).encode()
    (root / "dataset_0.json").write_bytes(raw)


def refused(root, **options):
    with pytest.raises(InputError) as caught:
        load_datalist(root, num_classes=14, **{"check": False, **options})
    return str(caught.value)


def rows():
    paths = {message: two(training=[{**entry(1), "image": path}]) for message, path in BAD_PATHS.items()}
    return {**NOT_JSON, **WRONG_TYPES, **paths, **BAD_SETS}


@pytest.mark.parametrize("message", rows())
def test_bad_datalist_is_refused(message, tmp_path):
    write_list(tmp_path, rows()[message])
    said = refused(tmp_path)
    assert message.replace("{root}", str(tmp_path)) in said
    assert said.startswith(str(tmp_path))
    assert all(line.isprintable() for line in said.splitlines())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_byte_order_mark_are_read(encoding, tmp_path):
    write_list(tmp_path, json.dumps(two(name="é")).encode(encoding))
    assert len(load_datalist(tmp_path, check=False)["training"]) == 1


def test_all_problems_of_a_datalist_are_in_one_message(tmp_path):
    bad = [
        case
        for message in WRONG_TYPES
        if message.startswith("training[0]")
        for case in WRONG_TYPES[message]["training"]
    ]
    bad += [{**entry(1), "image": path} for path in BAD_PATHS.values()]
    write_list(tmp_path, {"training": bad, "validation": None, "test": [0]})
    lines = refused(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path}/dataset_0.json: {len(bad) + 2} problems; correct these entries"
    assert [line.split(": ")[0] for line in lines[1:]] == [
        *(f"training[{n}]" for n in range(len(bad))),
        "validation",
        "test[0]",
    ]


def test_a_million_problems_are_not_all_listed(tmp_path):
    write_list(tmp_path, {"training": [0] * 10**6})
    lines = refused(tmp_path).splitlines()
    assert lines[0].endswith("dataset_0.json: 1000000 problems; correct these entries")
    assert lines[-1] == "... and 999000 more"
    assert len(lines) == 1002


FOLDS = {
    "fold is None": ({}, 0),
    "fold is 'a'": ({"fold": "a"}, 0),
    "fold is 0.5": ({"fold": 0.5}, 0),
    "fold is True": ({"fold": True}, 0),
    "fold is [0]": ({"fold": [0]}, 0),
    "fold is 1: give one of 0.": ({"fold": 0}, 1),
    "fold is '0': give one of 0.": ({"fold": 0}, "0"),
    "fold is False: give one of 0.": ({"fold": 0}, False),
    "fold is 0.0: give one of 0.": ({"fold": 0}, 0.0),
    "fold is [0]: give one of 0.": ({"fold": 0}, [0]),
    "fold is nan: give one of 0.": ({"fold": 0}, float("nan")),
}


@pytest.mark.parametrize("message", FOLDS)
def test_bad_folds_are_refused(message, tmp_path):
    given, fold = FOLDS[message]
    write_list(tmp_path, {"training": [entry(1, **given), entry(2, fold=0)]})
    assert message in refused(tmp_path, fold=fold)


PLACES = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "broken link": lambda path: path.symlink_to("none.json"),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("place", PLACES)
def test_datalist_that_is_no_file_is_refused_and_not_replaced_by_a_split(place, tmp_path):
    for number in range(2):
        write_case(tmp_path, image=f"imagesTr/{number}.nii.gz", label=f"labelsTr/{number}.nii.gz")
    PLACES[place](tmp_path / "dataset_0.json")
    assert refused(tmp_path) == (
        f"{tmp_path}/dataset_0.json: no such datalist, or not a file; correct datalist_file, or leave it out"
    )


def test_misspelt_datalist_is_refused_and_not_replaced_by_a_split(tmp_path):
    for number in range(2):
        write_case(tmp_path, image=f"imagesTr/{number}.nii.gz", label=f"labelsTr/{number}.nii.gz")
    assert "dataset_1.json: no such datalist, or not a file" in refused(tmp_path, datalist_file="dataset_1.json")
    assert len(load_datalist(tmp_path, check=False)["training"]) == 1


def test_copies_of_an_image_under_other_names_are_found(tmp_path):
    for number in (1, 2):
        write_case(tmp_path, **entry(number))
    shutil.copy(tmp_path / "imagesTr/i1.nii.gz", tmp_path / "imagesTr/i2.nii.gz")
    write_list(tmp_path, two())
    assert "i2.nii.gz: holds the same voxels as " in refused(tmp_path, check=True)
    load_datalist(tmp_path, num_classes=14, allow_overlap=True)


def test_torchrun_with_more_processes_than_cases_is_refused(tmp_path, monkeypatch):
    write_list(tmp_path, two())
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert refused(tmp_path).endswith("dataset_0.json: 1 training cases for 2 processes; start fewer")


@pytest.mark.parametrize(
    ("channel_def", "message"),
    [
        ({"0": "background", "2": "spleen"}, "channel_def has 2 classes, but not the index 1: leave no index out."),
        (
            {"0": "background", "1": "spleen", "2": "spleen"},
            "channel_def has index 2 or name 'spleen' twice: give each",
        ),
        ({"0": "background", "1": "right kidney"}, "class 1 'right kidney' has no contralateral class 'left kidney'"),
        ({"0": "background", "one": "spleen"}, "channel_def names the index 'one' 'spleen': give whole numbers"),
    ],
)
def test_bad_class_names_end_the_training_before_any_work(channel_def, message, torso_data, tmp_path):
    settings = training_settings(torso_data, tmp_path, channel_def=channel_def, check_data=False)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(BTCV, ["train.json"], **settings)
    assert reason(caught.value).startswith(message)
    assert not (tmp_path / "models").exists()


# Prepared cases


def prepared(folder, cases):
    return StoredCaseDataset(cases, Compose([LoadVolumed("image"), EnsureTyped("image")]), cache_dir=folder)


def flip_bit(path):
    """Change one bit of the compressed volume."""
    volume = path.with_suffix(".image.b2nd")
    raw = bytearray(volume.read_bytes())
    raw[len(raw) // 2] ^= 1
    volume.write_bytes(raw)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one bit": flip_bit,
    "list": lambda path: torch.save([1, 2], path),
    "weights": lambda path: torch.save({"out.conv.weight": torch.zeros(3)}, path),
    "code": lambda path: torch.save({"image": print}, path),
    "text": lambda path: path.write_text("<html>"),
    "link to nothing": lambda path: (path.unlink(), path.symlink_to("none")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_prepared_case_is_prepared_again(damage, tmp_path):
    path = write_array(tmp_path / "i.nii.gz", np.arange(700, 820, dtype=np.float32).reshape(4, 5, 6))
    cases = [{"image": str(path), "case": "i"}]
    dataset = prepared(tmp_path / "cache", cases)
    expected = dataset[0]["image"].clone()
    file = dataset.file_of(cases[0])
    written = {path: path.read_bytes() for path in file.parent.iterdir()}
    DAMAGES[damage](file)
    assert torch.equal(prepared(tmp_path / "cache", cases)[0]["image"], expected)
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == written


BAD_CACHES = {
    "file": (
        {"dataset": "store", "cache_dir": "{tmp}/file"},
        "cannot be written (Not a directory); set another cache",
    ),
    "device": (
        {"dataset": "store", "cache_dir": "/dev/null"},
        "cannot be written (Not a directory); set another ca",
    ),
    "rate 2": ({"cache_rate": 2}, "cache_rate is 2: give the fraction of cases to keep in memory, 0 to 1."),
    "rate NaN": ({"cache_rate": float("nan")}, "cache_rate is nan: give the fraction of cases to keep in memory"),
    "rate text": ({"cache_rate": "half"}, "cache_rate is 'half': give the fraction of cases to keep in memory"),
    "workers -1": ({"num_workers": -1}, "num_workers is -1: give the number of workers, 0 or more."),
    "workers 0.5": ({"num_workers": 0.5}, "num_workers is 0.5: give the number of workers, 0 or more."),
}


@pytest.mark.parametrize("kind", BAD_CACHES)
def test_bad_cache_ends_the_training_before_any_work(kind, torso_data, tmp_path):
    (tmp_path / "file").touch()
    given, message = BAD_CACHES[kind]
    given = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value for key, value in given.items()
    }
    workflow = bundle_workflow(
        BTCV, ["train.json"], kind="train", **training_settings(torso_data, tmp_path, check_data=False, **given)
    )
    workflow.initialize()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        workflow.parser.get_parsed_content("train#dataset")
    assert message in reason(caught.value)


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp")]


def test_old_leftovers_are_removed_whatever_the_transforms_and_other_files_stay(tmp_path):
    old = time.time() - 7200
    own, other = tmp_path / ("0" * 32), tmp_path / "my files"
    for folder in (own, other):
        folder.mkdir()
        (folder / ".tmp-0123456789abcdef.pt").touch()
        os.utime(folder / ".tmp-0123456789abcdef.pt", (old, old))
    (own / ".tmp-fedcba9876543210.pt").touch()
    prepared(tmp_path, [])
    assert [path.name for path in leftovers(own)] == [".tmp-fedcba9876543210.pt"]
    assert len(leftovers(other)) == 1


# The program


def start(*arguments, limit_bytes=None, **settings):
    limit = (limit_bytes or resource.RLIM_INFINITY,) * 2
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", *arguments, *command_line(settings)],
        cwd=ROOT / "bundles" / BTCV,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )


TRAIN = ("training", "--config_file", "configs/train.json")


@pytest.mark.hostile
def test_program_ends_with_one_message_for_a_bad_datalist(tmp_path):
    write_list(tmp_path, two(training=[entry(1), {**entry(3), "label": "../l.nii"}, 7]))
    process = start(*TRAIN, **training_settings(tmp_path, tmp_path / "out", max_epochs=1))
    stderr = process.communicate()[1]
    assert process.returncode == 1
    assert stderr.partition("\nerror: ")[2].splitlines() == [
        f"{tmp_path}/dataset_0.json: 2 problems; correct these entries",
        f"training[1]: label '../l.nii' is outside {tmp_path}; use a path inside it, or link the data into it",
        "training[2]: is 7, need an object with image and label",
    ]
    assert "Traceback" not in stderr


@pytest.mark.hostile
def test_full_disk_while_cases_are_prepared_ends_with_the_folder(torso_data, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(cache)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    try:
        settings = training_settings(torso_data, tmp_path, max_epochs=1, dataset="store", cache_dir=str(cache))
        process = start(*TRAIN, **{**settings, "num_workers": 2, "spacing_mm": [3.0, 3.0, 3.0]})
        stderr = process.communicate()[1]
        left = leftovers(cache)
    finally:
        subprocess.run(["umount", str(cache)], check=True)
    assert process.returncode == 1
    assert re.search(
        rf"\nerror: {cache}/\w+/[\w.]+: cannot be written \(No space left on device\); free space, then", stderr
    )
    assert left == []


@pytest.mark.hostile
def test_runs_that_fill_one_folder_at_once_reach_the_same_weights(torso_data, tmp_path):
    processes = []
    for name in ("a", "b", "c"):
        settings = training_settings(torso_data, tmp_path / name, max_epochs=2, num_workers=1)
        processes.append(start(*TRAIN, **settings, dataset="store", cache_dir=str(tmp_path / "cache")))
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    first, *others = (weights(tmp_path / name / "models" / "training_state.ckpt") for name in ("a", "b", "c"))
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 3
    assert leftovers(tmp_path / "cache") == []


def state_of(folder):
    """What has been written so far: the names of prepared and of half-written cases, and the last checkpoint."""
    last = folder / "models" / "training_state.ckpt"
    return sorted(path.name for path in (folder / "cache").rglob("*.pt")), last.is_file() and last.stat().st_mtime_ns


def kill_after_progress(process, folder, seconds):
    """Kill a run a while after it has written something, unless it ends before."""
    before = state_of(folder)
    while process.poll() is None and state_of(folder) == before:
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode


@pytest.mark.hostile
@pytest.mark.timeout(1800)
def test_training_from_prepared_cases_killed_at_random_moments_reaches_the_undisturbed_weights(torso_data, tmp_path):
    def settings(name):
        cache = {"dataset": "store", "cache_dir": str(tmp_path / name / "cache")}
        return training_settings(torso_data, tmp_path / name, max_epochs=6, num_workers=1, **cache)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    last = killed / "models" / "training_state.ckpt"
    rng = np.random.default_rng()
    for kills in range(8):
        process = start(*TRAIN, **settings("killed"), resume=last.is_file())
        code = kill_after_progress(process, killed, rng.uniform(0, 1.5) if kills else 0)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    assert kills
    for name, resume in (("killed", last.is_file()), ("whole", False)):
        process = start(*TRAIN, **settings(name), resume=resume)
        error = process.communicate()[1]
        assert process.returncode == 0, error
    states = [torch.load(folder / "models" / "training_state.ckpt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(states[0]["network"][key], states[1]["network"][key]) for key in states[0]["network"])
    for key in ("epoch", "iteration", "best_metric", "best_metric_epoch", "lr_scheduler"):
        assert states[0][key] == states[1][key], key
    for path in (whole / "cache").rglob("*.pt"):
        assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.hostile
@pytest.mark.timeout(900)
def test_a_million_cases_are_listed(tmp_path):
    write_list(tmp_path, {"training": [entry(n, patient=n) for n in range(10**6)], "validation": [entry(-1)]})
    lists = load_datalist(tmp_path, num_classes=14, check=False)
    assert len({item["case"] for item in lists["training"]}) == 10**6
