import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines.utils import IterationEvents

from scripts.inference import CaseDataset, CaseEvaluator


def transform(item):
    if item["image"] == "unreadable":
        raise ValueError("cannot be read")
    return {**item, "image": torch.full((1, 4, 4, 4), float(len(item["image"])))}


def evaluator(tmp_path, images, **options):
    data = [{"case": f"c{i}", "image": image} for i, image in enumerate(images)]
    loader = DataLoader(CaseDataset(data, transform), batch_size=1)
    network = torch.nn.Conv3d(1, 2, 1)
    return CaseEvaluator(
        output_dir=tmp_path, device=torch.device("cpu"), val_data_loader=loader, network=network, **options
    )


def test_all_good_cases_run_and_none_is_reported(tmp_path):
    (tmp_path / "failed.csv").write_text("of an earlier run")
    engine = evaluator(tmp_path, ["a", "b"])
    engine.run()
    engine.exit_if_failed()
    assert not (tmp_path / "failed.csv").exists()


def test_unreadable_case_is_reported_and_the_next_runs(tmp_path):
    done = []
    engine = evaluator(tmp_path, ["unreadable", "b"])
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda e: done.append(e.state.batch[0]["case"]))
    engine.run()
    assert done == ["c1"]
    assert (tmp_path / "failed.csv").read_text().split() == ["case,reason", "c0,cannot", "be", "read"]
    with pytest.raises(SystemExit, match="1 of 2 cases failed:\n  c0: cannot be read"):
        engine.exit_if_failed()


def test_failing_postprocessing_costs_that_case_alone(tmp_path):
    def postprocessing(item):
        if item["image"].max() == 2:
            raise OSError("No space left on device")
        return item

    engine = evaluator(tmp_path, ["a", "bb", "c"], postprocessing=postprocessing)
    finished = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: finished.append(len(e.state.output)))
    engine.run()
    assert finished == [1, 0, 1]
    assert engine.failures == {"c1": "No space left on device"}


def test_interrupt_by_the_user_is_not_a_failed_case(tmp_path):
    def postprocessing(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path, ["a"], postprocessing=postprocessing).run()


def test_out_of_memory_names_the_settings_that_help(tmp_path):
    def postprocessing(item):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = evaluator(tmp_path, ["a"], postprocessing=postprocessing)
    engine.run()
    assert "lower --sw_batch_size" in engine.failures["c0"]
