import csv

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, Lambda

from scripts.common.errors import InputError
from scripts.inference.evaluator import CaseDataset, CaseEvaluator


def transform(item):
    if item["image"] == "unreadable":
        raise InputError("p.nii.gz: cannot be read")
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


def test_no_failed_case_removes_the_list_of_an_earlier_run(tmp_path):
    (tmp_path / "failed.csv").write_text("of an earlier run")
    engine = evaluator(tmp_path, ["a", "b"])
    engine.run()
    engine.exit_if_failed()
    assert not (tmp_path / "failed.csv").exists()


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
    assert "lower sw_batch_size or patch_size" in engine.failures["c0"]


def test_output_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set another output folder"):
        evaluator(tmp_path / "file", ["a"])
