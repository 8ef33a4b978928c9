import csv
import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, Lambda
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scripts.common.errors import InputError
from scripts.common.failures import write_failures
from scripts.common.locks import FolderLock
from scripts.inference.evaluator import CaseDataset, CaseEvaluator


def transform(item):
    if item["image"] == "unreadable":
        raise InputError("p.nii.gz: cannot be read")
    if item["image"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item["image"] == "bug":
        _name, _suffix = (item["image"],)
    return {**item, "image": torch.full((1, 4, 4, 4), float(len(item["image"])))}


def dataset_of(images, preprocessing=transform):
    return CaseDataset([{"case": f"c{i}", "image": image} for i, image in enumerate(images)], preprocessing)


def evaluator(tmp_path, images, *, num_workers=0, preprocessing=transform, **options):
    loader = DataLoader(dataset_of(images, preprocessing), batch_size=1, num_workers=num_workers)
    network = torch.nn.Conv3d(1, 2, 1)
    return CaseEvaluator(
        output_dir=tmp_path, device=torch.device("cpu"), val_data_loader=loader, network=network, **options
    )


def finished_cases(engine):
    done = []
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda e: done.append(e.state.batch[0]["case"]))
    engine.run()
    return done


def failed_rows(tmp_path):
    with (tmp_path / "failed.csv").open(newline="") as file:
        return list(csv.reader(file))


def fail_on(case, error):
    """Return a postprocessing that raises `error` for one case."""

    def postprocessing(item):
        if item["case"] == case:
            raise error
        return item

    return postprocessing


def test_case_that_succeeds_leaves_the_list_of_failures_and_others_stay(tmp_path):
    write_failures(tmp_path, {"c0": "old", "c1": "old", "other": "of another run"})
    engine = evaluator(tmp_path, ["a", "unreadable"])
    engine.run()
    assert failed_rows(tmp_path)[1:] == [["c1", "p.nii.gz: cannot be read"], ["other", "of another run"]]
    with pytest.raises(SystemExit, match="1 of 2 cases failed"):
        engine.exit_if_failed()


def test_list_of_failures_is_removed_when_its_last_case_succeeds(tmp_path):
    write_failures(tmp_path, {"c0": "old"})
    engine = evaluator(tmp_path, ["a", "b"])
    engine.run()
    engine.exit_if_failed()
    assert list(tmp_path.iterdir()) == []


def test_evaluation_describes_its_own_cases_alone(tmp_path):
    write_failures(tmp_path, {"other": "of another run"})
    evaluator(tmp_path, ["a"], keep_earlier=False).run()
    assert list(tmp_path.iterdir()) == []


def test_list_of_failures_that_is_another_file_is_refused_before_the_first_case(tmp_path):
    (tmp_path / "failed.csv").write_text("notes")
    engine = evaluator(tmp_path, ["a"])
    with pytest.raises(InputError, match=r"failed\.csv: its columns are not .* move the file away"):
        engine.run()
    assert engine.state.iteration == 0


def test_evaluator_that_runs_again_forgets_the_failures_of_its_first_run(tmp_path):
    bad = {"c1"}

    def postprocessing(item):
        if item["case"] in bad:
            raise InputError("bad")
        return item

    engine = evaluator(tmp_path, ["a", "b"], postprocessing=postprocessing)
    engine.run()
    assert failed_rows(tmp_path)[1:] == [["c1", "bad"]]
    bad.clear()
    engine.run()
    engine.exit_if_failed()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stopped_run_keeps_the_reasons_so_far_and_frees_the_folder(tmp_path, stop):
    write_failures(tmp_path, {"c0": "old", "c2": "old"})
    engine = evaluator(tmp_path, ["unreadable", "b", "c"], postprocessing=fail_on("c1", stop()))
    with pytest.raises(stop):
        engine.run()
    assert failed_rows(tmp_path)[1:] == [["c0", "p.nii.gz: cannot be read"], ["c2", "old"]]
    assert [path.name for path in tmp_path.iterdir()] == ["failed.csv"]


def test_reasons_are_printed_when_their_list_cannot_be_written(tmp_path, caplog, monkeypatch):
    engine = evaluator(tmp_path, ["unreadable", "b"])
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    engine.run()
    assert f"{tmp_path}/failed.csv: cannot be written (No space left on device); free space" in caplog.messages[-1]
    with pytest.raises(SystemExit, match=r"c0: p\.nii\.gz: cannot be read"):
        engine.exit_if_failed()
    assert list(tmp_path.iterdir()) == []


def test_second_run_into_the_folder_is_refused_while_the_first_runs(tmp_path):
    def run_another(item):
        evaluator(tmp_path, ["a"]).run()
        return item

    engine = evaluator(tmp_path, ["a"], postprocessing=run_another)
    engine.run()
    assert f"{tmp_path}: another run is using this folder (host " in engine.failures["c0"]


def test_other_ranks_take_no_lock_and_write_no_list(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.inference.evaluator.is_rank0", lambda: False)
    with FolderLock(tmp_path):
        evaluator(tmp_path, ["unreadable"]).run()
    assert list(tmp_path.iterdir()) == []


def test_cases_after_the_folder_was_removed_fail(tmp_path):
    def remove(item):
        if item["case"] == "c0":
            shutil.rmtree(tmp_path / "out")
        return item

    engine = evaluator(tmp_path / "out", ["a", "b", "c"], postprocessing=remove)
    engine.run()
    why = f"{tmp_path}/out: was removed or replaced during the run; run again."
    assert engine.failures == {"c1": why, "c2": why}
    assert failed_rows(tmp_path / "out")[1:] == [["c1", why], ["c2", why]]


def test_results_that_will_be_replaced_are_named_once_at_the_start(tmp_path, caplog):
    for name in ("c0_seg.nii.gz", "c1_preview.png", "c2_x_seg.nii.gz", "c3_cleaned.nii.gz"):
        (tmp_path / name).touch()
    caplog.set_level("INFO", logger="scripts")
    evaluator(tmp_path, ["a"] * 4).run()
    assert caplog.messages[0] == f"{tmp_path}: replacing the results of 2 cases: c0, c3"


def test_killed_loading_process_fails_its_case_alone(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    engine = evaluator(tmp_path, ["a", "killed", "c"], num_workers=1)
    assert finished_cases(engine) == ["c0", "c2"]
    ((case, why),) = failed_rows(tmp_path)[1:]
    assert case == "c1"
    assert why.startswith("the process that loads it was killed (SIGKILL, out of memory?); ")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_case_is_reported_without_a_traceback_and_the_next_runs(tmp_path, caplog, num_workers):
    engine = evaluator(tmp_path, ["unreadable", "b"], num_workers=num_workers)
    assert finished_cases(engine) == ["c1"]
    assert failed_rows(tmp_path) == [["case", "reason"], ["c0", "p.nii.gz: cannot be read"]]
    assert caplog.messages == ["case c0 failed: p.nii.gz: cannot be read"]
    assert "Traceback" not in caplog.text
    with pytest.raises(SystemExit, match=r"1 of 2 cases failed:\n  c0: p.nii.gz: cannot be read"):
        engine.exit_if_failed()


BUG = "ValueError: not enough values to unpack (expected 2, got 1)"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bug_in_preprocessing_is_reported_with_its_type_and_traceback(tmp_path, caplog, num_workers):
    engine = evaluator(tmp_path, ["a", "bug", "c"], num_workers=num_workers)
    assert finished_cases(engine) == ["c0", "c2"]
    assert failed_rows(tmp_path)[1:] == [["c1", BUG]]
    (message,) = caplog.messages
    assert message.startswith(f"case c1 failed: {BUG}\nTraceback (most recent call last):\n")
    assert '_name, _suffix = (item["image"],)' in message


def test_bug_inside_a_transform_of_monai_is_reported_without_its_wrapper(tmp_path, caplog):
    engine = evaluator(tmp_path, ["a", "bug"], preprocessing=Compose([Lambda(transform)]))
    engine.run()
    assert engine.failures == {"c1": BUG}
    assert '_name, _suffix = (item["image"],)' in caplog.text


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TypeError("'NoneType' object is not iterable"), "TypeError: 'NoneType' object is not iterable"),
        (ValueError("not enough values to unpack"), "ValueError: not enough values to unpack"),
        (OSError("No space left on device"), "OSError: No space left on device"),
    ],
    ids=["TypeError", "ValueError", "OSError"],
)
def test_bug_in_postprocessing_fails_that_case_alone_with_its_traceback(tmp_path, caplog, error, why):
    engine = evaluator(tmp_path, ["a", "b", "c"], postprocessing=fail_on("c1", error))
    finished = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: finished.append(len(e.state.output)))
    engine.run()
    assert finished == [1, 0, 1]
    assert failed_rows(tmp_path)[1:] == [["c1", why]]
    assert caplog.messages == [f"case c1 failed: {why}"]
    assert "Traceback (most recent call last)" in caplog.text
    assert "in postprocessing" in caplog.text


def test_wrong_input_in_a_handler_fails_that_case_without_a_traceback(tmp_path, caplog):
    def check(engine):
        if engine.state.batch[0]["case"] == "c0":
            raise InputError("c0: of another grid")

    engine = evaluator(tmp_path, ["a", "b"])
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, check)
    assert finished_cases(engine) == ["c1"]
    assert engine.failures == {"c0": "c0: of another grid"}
    assert caplog.messages == ["case c0 failed: c0: of another grid"]
    assert "Traceback" not in caplog.text


def test_failed_case_leaves_nothing_to_the_handlers(tmp_path):
    engine, left = evaluator(tmp_path, ["unreadable"]), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: left.append((e.state.batch, e.state.output)))
    engine.run()
    assert left == [([], [])]


def test_dataset_returns_the_reason_of_an_unreadable_case():
    assert dataset_of(["unreadable"])[0] == {"case": "c0", "error": "p.nii.gz: cannot be read", "traceback": ""}


def test_interrupt_by_the_user_is_not_a_failed_case(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path, ["a"], postprocessing=fail_on("c0", KeyboardInterrupt())).run()


def test_out_of_memory_names_the_settings_that_help(tmp_path):
    error = torch.OutOfMemoryError("CUDA out of memory")
    engine = evaluator(tmp_path, ["a"], postprocessing=fail_on("c0", error))
    engine.run()
    assert "lower sw_batch_size, batch_size or patch_size" in engine.failures["c0"]


def test_output_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set another output folder"):
        evaluator(tmp_path / "file", ["a"])
