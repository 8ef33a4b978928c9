import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureTyped,
    Lambdad,
    MapTransform,
    Orientationd,
    RandShiftIntensityd,
    RandSpatialCropd,
    ScaleIntensityRanged,
)

from scripts.common.errors import InputError
from scripts.data import datasets
from scripts.data.datasets import KINDS, StoredCaseDataset, make_dataset
from scripts.data.transforms import Spacingd
from scripts.inference.restore import RestoreLabelMapd
from scripts.io.loading import LoadVolumed
from scripts.training.sampling import SeededCases, SeededSampler
from tests.conftest import ROOT

SHAPE = (12, 11, 10)
RANDOM = (RandSpatialCropd("image", roi_size=(4, 4, 4), random_size=False), RandShiftIntensityd("image", 0.5, prob=1.0))


class Counted(MapTransform):
    """Counts how often it runs."""

    def __init__(self):
        super().__init__("image")

    def __call__(self, data):
        with Path(os.environ["RUNS"]).open("a") as file:
            file.write("x")
        return data


def runs():
    path = Path(os.environ["RUNS"])
    return len(path.read_text()) if path.is_file() else 0


@pytest.fixture(autouse=True)
def _count_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))


def write_volume(path, seed=0):
    volume = np.random.default_rng(seed).normal(100, 50, SHAPE).astype(np.float32)
    affine = np.array([[-2, 0.3, 0, 5], [0.3, 1.5, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(volume, affine), path)
    return str(path)


@pytest.fixture
def cases(tmp_path):
    return [{"image": write_volume(tmp_path / f"{i}.nii", i), "case": f"case {i}"} for i in range(3)]


def steps(a_max=250, spacing_mm=(2, 2, 2), random=()):
    return Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", pixdim=spacing_mm, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=0, a_max=a_max, b_min=0, b_max=1, clip=True),
            CropForegroundd("image", source_key="image"),
            EnsureTyped("image"),
            Counted(),
            *random,
        ]
    )


def make(cases, kind, tmp_path, transform=None):
    return make_dataset(cases, transform or steps(), kind=kind, cache_dir=tmp_path / "cache")


def files(tmp_path):
    return sorted((tmp_path / "cache").rglob("[!.]*.pt"))


# What each kind does


def test_kinds_and_their_classes(cases, tmp_path):
    kinds = [type(make(cases, kind, tmp_path)) for kind in KINDS]
    assert kinds == [CacheDataset, StoredCaseDataset, Dataset]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_result_of_the_transforms(kind, cases, tmp_path):
    dataset = make(cases, kind, tmp_path)
    for _ in range(2):
        for item, case in zip(dataset, cases, strict=True):
            expected = steps()(case)
            assert item.keys() == expected.keys()
            assert torch.equal(item["image"].as_tensor(), expected["image"].as_tensor())
            assert torch.equal(item["image"].affine, expected["image"].affine)
            assert type(item["image"]) is MetaTensor
            assert item["image"].meta["filename_or_obj"] == case["image"]
            assert item["case"] == case["case"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("random", [(), RANDOM])
def test_reason_takes_the_place_of_a_case_that_cannot_be_prepared(kind, random, cases, tmp_path):
    Path(cases[1]["image"]).unlink()
    options = {"kind": kind, "cache_dir": tmp_path / "cache", "report_failures": True}
    first, failed, last = make_dataset(cases, steps(random=random), **options)
    reason = f"{cases[1]['image']}: no such file; correct the path."
    assert failed == {"case": "case 1", "error": reason, "traceback": ""}
    assert (first["case"], last["case"]) == ("case 0", "case 2")
    assert first["image"].ndim == 4


@pytest.mark.parametrize(("kind", "first", "later"), [("cache", 3, 0), ("store", 3, 0), ("plain", 3, 3)])
def test_how_often_cases_are_prepared(kind, first, later, cases, tmp_path):
    dataset = make(cases, kind, tmp_path)
    for expected in (first, later):
        before = runs()
        assert len([item["case"] for item in dataset]) == 3
        prepared = runs() - before if kind != "cache" or expected == later else runs()
        assert prepared == expected


def test_files_are_used_by_other_datasets_of_the_same_cases(cases, tmp_path, caplog):
    list(make(cases[:2], "store", tmp_path))
    with caplog.at_level("INFO", logger="scripts.data.datasets"):
        list(make(cases, "store", tmp_path))
    assert runs() == 3
    assert len(files(tmp_path)) == 3
    assert "2 of 3 cases are prepared already" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_random_transforms_stay_random(kind, cases, tmp_path):
    dataset = make(cases, kind, tmp_path, steps(random=RANDOM))
    first, second = dataset[0]["image"], dataset[0]["image"]
    assert first.shape == second.shape == (1, 4, 4, 4)
    assert not torch.equal(first.as_tensor(), second.as_tensor())


def epoch(dataset, number, num_workers=0):
    sampler = SeededSampler(dataset, seed=5)
    sampler.set_epoch(number)
    loader = DataLoader(SeededCases(dataset), batch_size=1, sampler=sampler, num_workers=num_workers)
    return torch.cat([batch["image"].as_tensor() for batch in loader])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_epoch_draws_the_same_from_every_kind_and_after_resuming(num_workers, cases, tmp_path):
    drawn = []
    for kind in KINDS:
        through = make(cases, kind, tmp_path, steps(random=RANDOM))
        epoch(through, 1, num_workers)
        resumed = make(cases, kind, tmp_path, steps(random=RANDOM))
        drawn += [epoch(through, 2, num_workers), epoch(resumed, 2, num_workers)]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert not torch.equal(epoch(through, 3), drawn[0])


def test_prediction_on_a_prepared_case_is_restored_to_the_grid_of_its_file(cases, tmp_path):
    restored = []
    for kind in ("plain", "store", "store"):
        transform = steps()
        item = make(cases, kind, tmp_path, transform)[0]
        item["pred"] = torch.cat([0.5 - item["image"], item["image"]])
        restored.append(RestoreLabelMapd("pred", orig_keys="image", transform=transform)(item)["pred"])
    assert restored[0].shape == (1, *SHAPE)
    assert 0 < restored[0].float().mean() < 1
    for label in restored[1:]:
        assert torch.equal(label.as_tensor(), restored[0].as_tensor())


# Which changes prepare a case again


def folder_of(transform, tmp_path):
    return StoredCaseDataset([], transform, cache_dir=tmp_path).cache_dir.name


def of(step):
    return Compose([LoadVolumed("image"), step])


class Holder(MapTransform):
    """Holds a value."""

    def __init__(self, value):
        super().__init__("image")
        self.value = value

    def __call__(self, data):
        return data


class OtherHolder(Holder):
    """Holds a value."""


CHANGES = {
    "parameter": (steps(), steps(a_max=251)),
    "spacing": (steps(), steps(spacing_mm=(2, 2, 2.5))),
    "order": (Compose([Holder(1), Holder(2)]), Compose([Holder(2), Holder(1)])),
    "one more": (of(Holder(1)), Compose([LoadVolumed("image"), Holder(1), Holder(1)])),
    "class": (of(Holder(1)), of(OtherHolder(1))),
    "keys": (of(EnsureTyped("image")), of(EnsureTyped(["image", "label"]))),
    "attribute": (of(Holder(np.arange(3))), of(Holder(np.arange(3.0)))),
    "lambda": (of(Lambdad("image", lambda x: x + 1)), of(Lambdad("image", lambda x: x * 2))),
}
"""What changes a fingerprint is tested in tests/scripts/common/test_fingerprint.py."""


@pytest.mark.parametrize("change", CHANGES)
def test_changed_transform_prepares_again(change, tmp_path):
    before, after = CHANGES[change]
    assert folder_of(before, tmp_path) == folder_of(before, tmp_path)
    assert folder_of(before, tmp_path) != folder_of(after, tmp_path)


def test_changed_random_transform_does_not_prepare_again(tmp_path):
    other = (RandSpatialCropd("image", roi_size=(5, 5, 5), random_size=False),)
    assert folder_of(steps(random=RANDOM), tmp_path) == folder_of(steps(random=other), tmp_path)
    assert folder_of(steps(random=RANDOM), tmp_path) == folder_of(steps(), tmp_path)


OWN_STEP = """
from monai.transforms import Compose, MapTransform
class Add(MapTransform):
    def __init__(self):
        super().__init__("image")
        self.words = set("one two three four five six seven eight".split())
    def __call__(self, data):
        return {{"image": data["image"] + {number}}}
steps = Compose([Add()])
"""
OTHER_PROCESS = """
import sys
sys.path[:0] = sys.argv[1:3]
from own_step import steps
from scripts.data.datasets import StoredCaseDataset
print("folder", StoredCaseDataset([], steps, cache_dir=sys.argv[3]).cache_dir.name)
"""


def own_folder(folder, number, monkeypatch):
    (folder / "own_step.py").write_text(OWN_STEP.format(number=number))
    spec = importlib.util.spec_from_file_location("own_step", folder / "own_step.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_step", module)
    spec.loader.exec_module(module)
    return folder_of(module.steps, folder)


def test_changed_code_prepares_again_and_processes_agree(monkeypatch, tmp_path):
    other, mine = own_folder(tmp_path, 2, monkeypatch), own_folder(tmp_path, 1, monkeypatch)
    arguments = [sys.executable, "-c", OTHER_PROCESS, str(ROOT), str(tmp_path), str(tmp_path)]
    done = subprocess.run(arguments, env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert f"folder {mine}\n" in done.stdout, done.stderr
    assert mine != other


def test_changed_file_is_prepared_again(cases, tmp_path):
    before = make(cases, "store", tmp_path)[0]["image"]
    size = Path(cases[0]["image"]).stat().st_size
    write_volume(cases[0]["image"], seed=9)
    assert Path(cases[0]["image"]).stat().st_size == size
    dataset = make(cases, "store", tmp_path)
    assert not torch.equal(dataset[0]["image"].as_tensor(), before.as_tensor())
    assert torch.equal(dataset[0]["image"].as_tensor(), steps()(cases[0])["image"].as_tensor())
    write_volume(cases[0]["image"], seed=10)
    assert torch.equal(dataset[0]["image"].as_tensor(), steps()(cases[0])["image"].as_tensor()), "while it runs"


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_changed_file_in_a_list_or_folder_is_noticed(kind, tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    paths = [folder / name for name in ("a.dcm", "b.dcm")]
    for path in paths:
        path.write_text("one")
    item = {"image": [str(path) for path in paths] if kind == "list" else str(folder)}
    dataset = StoredCaseDataset([item], Compose([Holder(1)]), cache_dir=tmp_path / "cache")
    before = dataset.file_of(item)
    assert dataset.file_of(item) == before
    paths[1].write_text("other")
    assert dataset.file_of(item) != before


def test_text_beside_the_files_counts_and_may_be_of_any_length(cases, tmp_path):
    dataset = make(cases, "store", tmp_path)
    notes = ["", "x" * 5000, "a\0b", "two\nlines"]
    assert len({dataset.file_of({**cases[0], "note": note}) for note in notes}) == len(notes)


def test_cases_with_the_same_image_and_other_labels_have_other_files(cases, tmp_path):
    dataset = make(cases, "store", tmp_path)
    assert dataset.file_of(cases[0]) != dataset.file_of({**cases[0], "label": cases[1]["image"]})
    assert dataset.file_of(cases[0]) == dataset.file_of(dict(reversed(cases[0].items())))


def test_case_prepared_twice_gives_the_same_bytes(cases, tmp_path):
    for name in ("a", "b"):
        make(cases[:1], "store", tmp_path / name)[0]
    (first,), (second,) = (files(tmp_path / name) for name in ("a", "b"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


# Killed runs and damaged files


KILLED_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from monai.transforms import Compose, EnsureTyped
from scripts.data.datasets import StoredCaseDataset
def half(content, file):
    file.write(b"half a file")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
def half_volume(path, frame):
    with path.open("wb") as file:
        half(None, file)
if sys.argv[3] == "volume":
    Path.write_bytes = half_volume
else:
    torch.save = half
case = {"image": torch.ones((1, 4, 4, 4))}
StoredCaseDataset([], Compose([EnsureTyped("image")]), cache_dir=sys.argv[2]).prepared(case)
"""


@pytest.mark.parametrize("part", ["volume", "rest"])
def test_killed_run_leaves_no_file_that_is_read(part, tmp_path):
    folder = tmp_path / "cache"
    arguments = [sys.executable, "-c", KILLED_WHILE_WRITING, str(ROOT), str(folder), part]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (half,) = folder.rglob(".tmp-*")
    assert files(tmp_path) == []
    case = {"image": torch.ones((1, 4, 4, 4))}
    dataset = StoredCaseDataset([case], Compose([EnsureTyped("image")]), cache_dir=folder)
    assert half.parent == dataset.cache_dir
    assert half.exists(), "another process may be writing it"
    assert torch.equal(dataset[0]["image"], case["image"])
    old = time.time() - 2 * datasets.LEFTOVER_AGE_S
    os.utime(half, (old, old))
    StoredCaseDataset([], Compose([EnsureTyped("image")]), cache_dir=folder)
    assert not half.exists()
    assert len(files(tmp_path)) == 1


DAMAGES = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "first bytes": lambda whole: whole[:100],
    "text": lambda whole: b"not a PyTorch checkpoint",
    "zeros at the start": lambda whole: bytes(2000) + whole[2000:],
    "one bit": lambda whole: whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:],
}


@pytest.mark.parametrize("ending", [".pt", ".image.b2nd"])
@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_damaged_case_is_prepared_again(damage, ending, cases, tmp_path, caplog):
    expected = make(cases, "store", tmp_path)[0]["image"]
    (path,) = (tmp_path / "cache").rglob(f"[!.]*{ending}")
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(DAMAGES[damage](whole))
    image = make(cases, "store", tmp_path)[0]["image"]
    assert torch.equal(image.as_tensor(), expected.as_tensor())
    assert ("cannot be read" in caplog.text) == ((damage, ending) != ("missing", ".pt"))
    assert path.read_bytes() == whole


def flip_a_bit(tmp_path):
    (path,) = (tmp_path / "cache").rglob("[!.]*.b2nd")
    whole = bytearray(path.read_bytes())
    whole[2000] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_checksums_are_compared_once_by_all_processes_of_a_run(num_workers, cases, tmp_path, caplog):
    dataset = make(cases[:1], "store", tmp_path)
    loader = DataLoader(dataset, num_workers=num_workers)
    list(loader)
    flip_a_bit(tmp_path)
    list(loader)
    assert runs() == 1
    list(DataLoader(make(cases[:1], "store", tmp_path), num_workers=num_workers))
    assert runs() == 2


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["RUNS"]).with_name("harm"),))


def test_code_in_a_file_is_not_executed(cases, tmp_path):
    list(make(cases[:1], "store", tmp_path))
    torch.save({"image": Harmful()}, files(tmp_path)[0])
    item = make(cases, "store", tmp_path)[0]
    assert not (tmp_path / "harm").exists()
    assert item["image"].ndim == 4


def test_objects_that_cannot_be_read_back_safely_are_refused_when_written(cases, tmp_path):
    dataset = make(cases, "store", tmp_path, Compose([Lambdad("image", lambda path: Harmful())]))
    with pytest.raises(InputError, match=r"^prepared cases hold .*, not only data: set dataset to cache\.$"):
        dataset.prepared(cases[0])
    assert not list((tmp_path / "cache").rglob("*.pt"))


def test_full_disk_is_refused_with_the_file(cases, tmp_path):
    dataset = make(cases, "store", tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"\.image\.b2nd: cannot be written \(File too large\); check the folder"):
            dataset.prepared(cases[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_view_of_a_tensor_is_written_without_its_base(tmp_path):
    whole = torch.zeros((1, 100, 100, 100))
    dataset = StoredCaseDataset([{}], Compose([Lambdad("image", lambda _: whole[:, :2])]), cache_dir=tmp_path / "cache")
    dataset.prepared({"image": 0})
    assert files(tmp_path)[0].stat().st_size < 200_000


def test_processes_may_remove_the_same_leftovers(tmp_path, monkeypatch):
    """One process lists a file that another one removes."""
    dataset = StoredCaseDataset([], Compose([Holder(1)]), cache_dir=tmp_path)
    (dataset.cache_dir / ".tmp-0123456789abcdef.pt").symlink_to(tmp_path / "removed already")
    StoredCaseDataset([], Compose([Holder(1)]), cache_dir=tmp_path)


# Indices


def test_indices_may_be_negative_numpy_integers_or_slices(cases, tmp_path):
    dataset = make(cases, "store", tmp_path)
    assert dataset[-1]["case"] == dataset[np.int64(2)]["case"] == "case 2"
    assert [case["case"] for case in dataset[1:]] == [case["case"] for case in dataset[[1, 2]]] == ["case 1", "case 2"]
    assert runs() == 2


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "disk"}, "dataset is 'disk': give cache (memory), store (files in cache_dir) or plain."),
        ({"kind": "persistent"}, "dataset is 'persistent': persistent is now called store; give cache (memory), store"),
        ({"mmap": "maybe"}, "store_mmap is 'maybe': give true or false."),
        ({"kind": True}, "dataset is True: give cache (memory)"),
        ({"cache_rate": 1.5}, "cache_rate is 1.5: give the fraction of cases to keep in memory, 0 to 1."),
        ({"cache_rate": float("nan")}, "cache_rate is nan: give the fraction of cases to keep in memory, 0 to 1."),
        ({"cache_rate": "1"}, "cache_rate is '1': give the fraction of cases to keep in memory, 0 to 1."),
        ({"num_workers": -1}, "num_workers is -1: give the number of workers, 0 or more."),
        ({"num_workers": 1.0, "kind": "plain"}, "num_workers is 1.0: give the number of workers, 0 or more."),
    ],
)
def test_invalid_settings_are_refused(settings, message, cases):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        make_dataset(cases, steps(), **settings)


def test_cache_dir_that_cannot_be_written_is_refused(cases, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"/cache/[0-9a-f]{32}: cannot be written \(Not a directory\)"):
        make(cases, "store", tmp_path)


def test_transform_without_fingerprint_is_refused(tmp_path):
    message = (
        r"^a transform cannot be checked for changes \(a generator has no fingerprint: .*\): set dataset to cache\.$"
    )
    with pytest.raises(InputError, match=message):
        StoredCaseDataset([], of(Holder(i for i in range(3))), cache_dir=tmp_path)


def test_cache_rate_is_the_fraction_in_memory(cases):
    dataset = make_dataset(cases, steps(), cache_rate=0.4)
    assert dataset.cache_num == 1
