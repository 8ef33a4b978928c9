import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scripts.common.errors import InputError
from scripts.inference.evaluator import CaseDataset
from scripts.inference.loader import CaseLoader, end_worker_on_queue_error


@pytest.fixture(autouse=True)
def _quick_to_notice(monkeypatch):
    """Look for dead processes five times a second, not every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)


def kill_first_time(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def bug(_):
    raise ValueError("not enough values to unpack")


ENDS = {
    "good": lambda _: None,
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "bus error": lambda _: os.kill(os.getpid(), signal.SIGBUS),
    "exit": lambda _: os._exit(3),
    "slow": lambda _: time.sleep(60),
    "once": kill_first_time,
    "unsent": lambda _: lambda: None,
    "bug": bug,
}


def transform(item):
    kind, _, argument = item["image"].partition(":")
    unpicklable = ENDS[kind](argument)
    return {**item, "image": unpicklable or torch.full((1, 4, 4, 4), float(item["case"][1:]))}


def loader_of(kinds, *, num_workers=1, **options):
    dataset = CaseDataset([{"case": f"c{i}", "image": kind} for i, kind in enumerate(kinds)], transform)
    return CaseLoader(DataLoader(dataset, batch_size=1, num_workers=num_workers, **options))


def loaded(loader):
    """Return case to voxel value or reason."""
    return {
        batch["case"][0]: batch["error"][0] if "error" in batch else float(batch["image"][0].mean()) for batch in loader
    }


KILLED = (
    "the process that loads it was killed (SIGKILL, out of memory?); free memory or leave the case out, then run again."
)
REASONS = {
    "killed": KILLED,
    "segfault": KILLED.replace("was killed (SIGKILL, out of memory?)", "crashed (SIGSEGV)"),
    "bus error": KILLED.replace("was killed (SIGKILL, out of memory?)", "crashed (SIGBUS, is /dev/shm full?)"),
    "exit": "the process that loads it ended with exit code 3.",
    "slow": "was not loaded within 3 s, the timeout of the dataloader.",
    "unsent": "the process that loads it cannot send it; see the error above, such as a full disk of temporary files.",
}


LONG = ("slow", "bus error", "segfault")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.hostile] * (k in LONG)) for k in REASONS])
def test_case_whose_process_ends_gets_the_reason_and_the_others_are_loaded_in_order(kind):
    more = {"unsent": {"collate_fn": as_lists}, "slow": {"timeout": 3}}.get(kind, {})
    before = multiprocessing.active_children()  # of other tests
    cases = loaded(loader_of(["good", kind, "good", "good"], **more))
    assert list(cases.items()) == [("c0", 0.0), ("c1", REASONS[kind]), ("c2", 2.0), ("c3", 3.0)]
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_case_that_can_be_loaded_at_the_second_try_is_loaded(tmp_path, caplog, num_workers):
    kinds = ["good", f"once:{tmp_path}/a", "good", f"once:{tmp_path}/b", "good"]
    assert loaded(loader_of(kinds, num_workers=num_workers)) == {f"c{i}": float(i) for i in range(5)}
    assert "the process that loads it was killed (SIGKILL, out of memory?): loading again" in caplog.text


def test_first_last_and_neighbouring_cases_may_be_killed_beside_other_processes():
    kinds = ["killed", "good", "good", "killed", "killed", "good", "killed"]
    cases = loaded(loader_of(kinds, num_workers=2))
    assert list(cases) == [f"c{i}" for i in range(7)]
    assert [case for case, why in cases.items() if why == KILLED] == ["c0", "c3", "c4", "c6"]


def test_error_that_the_dataset_raises_is_the_case_s_own_and_kills_nothing(caplog):
    assert loaded(loader_of(["bug", "good"])) == {"c0": "ValueError: not enough values to unpack", "c1": 1.0}
    assert caplog.messages == []


def as_lists(items):
    return {key: [item[key] for item in items] for key in items[0]}


def fail_on_batch(items):
    """A collate function that fails outside of the dataset."""
    if items[0]["case"] == "c1" and "error" not in items[0]:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
    return as_lists(items)


def test_error_of_collating_fails_its_case_alone():
    loader = loader_of(["good", "good", "good"], collate_fn=fail_on_batch)
    cases = {batch["case"][0]: batch.get("error") for batch in loader}
    assert cases["c0"] is cases["c2"] is None
    assert "set num_workers to 0" in cases["c1"][0]


def test_case_that_is_being_segmented_does_not_fail_when_another_is_killed():
    batches = iter(loader_of(["good", "killed"]))
    assert next(batches)["case"] == ["c0"]
    for _ in range(20):  # torch's handler of SIGCHLD would raise here
        time.sleep(0.05)
    assert next(batches)["error"] == [KILLED]


def test_random_numbers_are_those_of_the_loader_itself():
    def drawn(iterable):
        torch.manual_seed(0)
        return [batch["case"] for batch in iterable], torch.rand(1)

    loader = loader_of(["good"] * 3)
    (order, after), (order_alone, after_alone) = drawn(loader), drawn(loader.loader)
    assert order == order_alone
    assert torch.equal(after, after_alone)


def test_loader_without_processes_is_passed_through():
    loader = loader_of(["good", "good"], num_workers=0)
    assert loaded(loader) == {"c0": 0.0, "c1": 1.0}
    assert len(loader) == 2
    assert loader.dataset is loader.loader.dataset


def test_batches_of_several_cases_are_refused():
    with pytest.raises(InputError, match="batch_size is 2: cases are loaded one at a time, set it to 1"):
        CaseLoader(DataLoader(CaseDataset([], transform), batch_size=2))


def test_queue_error_in_the_main_process_is_printed_and_does_not_end_it(capfd):
    end_worker_on_queue_error()
    queue = multiprocessing.Queue()
    queue.put(lambda: None)  # cannot be pickled
    queue.close()
    queue.join_thread()
    assert "pickle" in capfd.readouterr().err
