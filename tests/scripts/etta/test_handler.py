import resource
import sys

import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from torch import nn

from scripts.common.errors import InputError
from scripts.etta.handler import ETTAHandler, peak_memory_mb
from scripts.etta.inferer import ETTAInferer
from scripts.etta.settings import ETTASettings
from scripts.inference.evaluator import CaseEvaluator
from tests.scripts.etta.tiny_network import INFERER, LENIENT, Tiny, assert_restored, image, plain, predict, state


def cases(names="ab", **more):
    return [{"case": name, "image": MetaTensor(image(ord(name))[0]), **more} for name in names]


def evaluator(network, items, *, handlers, kind=SupervisedEvaluator, inferer=INFERER, **more):
    loader = DataLoader(Dataset(items), batch_size=1)
    device = torch.device("cpu")
    options = {"device": device, "val_data_loader": loader, "network": network, "inferer": inferer}
    return kind(val_handlers=handlers, **options, **more)


def predictions(engine):
    found = {}

    @engine.on(Events.ITERATION_COMPLETED)
    def keep():
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            found[item["case"]] = output["pred"].as_tensor()[None]

    engine.run()
    return found


def test_each_case_is_adapted_and_has_a_row(tmp_path):
    network = Tiny().eval()
    before = state(network)
    engine = evaluator(network, cases("ba"), handlers=[ETTAHandler(LENIENT, output_dir=tmp_path)])
    found = predictions(engine)
    for name in "ab":
        assert torch.equal(found[name], predict(network, image(ord(name)))[0])
    table = pd.read_csv(tmp_path / "etta.csv")
    assert list(table["case"]) == ["a", "b"]
    assert table["accepted"].all()
    assert (table["entropy_after"] < table["entropy_before"]).all()
    assert (table[["seconds", "peak_memory_mb"]] > 0).all(axis=None)
    metrics = engine.state.metrics
    assert metrics["etta_accepted"] == 1
    assert metrics["etta_entropy_before"] == pytest.approx(table["entropy_before"].mean(), abs=1e-6)
    assert engine.inferer is INFERER
    assert_restored(network, before)


def test_second_run_of_an_evaluator_adapts_alike(tmp_path):
    handler = ETTAHandler(LENIENT, output_dir=tmp_path)
    engine = evaluator(Tiny().eval(), cases("a"), handlers=[handler])
    engine.run()
    first = pd.read_csv(tmp_path / "etta.csv")
    engine.run()
    again = pd.read_csv(tmp_path / "etta.csv")
    measured = ["case", "accepted", "entropy_before", "entropy_after", "windows"]
    pd.testing.assert_frame_equal(again[measured], first[measured])


def test_no_steps_change_nothing(tmp_path):
    network = Tiny().eval()
    engine = evaluator(
        network, cases("a"), handlers=[ETTAHandler(ETTASettings(adapt="weights", steps=0), output_dir=tmp_path)]
    )
    assert torch.equal(predictions(engine)["a"], plain(network, image(ord("a"))))
    assert pd.read_csv(tmp_path / "etta.csv")["reason"].tolist() == ["steps is 0"]


def test_evaluator_that_adapts_by_itself_gets_its_table(tmp_path):
    own = ETTAInferer(INFERER, LENIENT)
    handler = ETTAHandler(ETTASettings(adapt="weights", steps=0), output_dir=tmp_path)
    engine = evaluator(Tiny().eval(), cases("a"), handlers=[handler], inferer=own)
    engine.run()
    assert engine.inferer is own
    assert pd.read_csv(tmp_path / "etta.csv")["reason"].tolist() == ["entropy dropped"]


def test_runs_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    engine = evaluator(Tiny().eval(), cases("a"), handlers=[ETTAHandler(LENIENT)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: pytest.fail(f"asked of {device}"))
    engine.run()
    assert engine.state.metrics["etta_accepted"] == 1


class Raise:
    """Re-raises as MONAI's `StatsHandler` does, after which Ignite calls no other handler of the exception."""

    def attach(self, engine):
        engine.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, engine, error):
        raise error


@pytest.mark.parametrize("handlers", [lambda etta: [etta], lambda etta: [Raise(), etta], lambda etta: [etta, Raise()]])
def test_inferer_and_network_are_restored_when_a_case_ends_the_run(handlers):
    network = Tiny(fail_at=12).eval()
    before = state(network)
    engine = evaluator(network, cases("a"), handlers=handlers(ETTAHandler(LENIENT)))
    with pytest.raises(RuntimeError, match="out of order"):
        engine.run()
    assert engine.inferer is INFERER
    assert_restored(network, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_inferer_is_restored_when_a_case_fails_before_it_is_predicted(error):
    def fail(*args, **kwargs):
        raise error("no batch")

    handlers = [Raise(), ETTAHandler(LENIENT)]
    engine = evaluator(Tiny().eval(), cases("a"), handlers=handlers, prepare_batch=fail)
    with pytest.raises(error, match="no batch"):
        engine.run()
    assert engine.inferer is INFERER


def test_error_of_a_case_reaches_handlers_attached_after():
    seen = []

    class Note(Raise):
        def __call__(self, engine, error):
            seen.append(str(error))
            raise error

    engine = evaluator(Tiny(fail_at=12).eval(), cases("a"), handlers=[ETTAHandler(LENIENT), Note()])
    with pytest.raises(RuntimeError):
        engine.run()
    assert set(seen) == {"out of order"}


def test_failed_case_has_no_row_and_the_next_is_predicted_as_if_alone(tmp_path):
    network = Tiny(fail_at=12).eval()
    handler = ETTAHandler(LENIENT, output_dir=tmp_path)
    engine = evaluator(network, cases("ab"), handlers=[handler], kind=CaseEvaluator, output_dir=tmp_path)
    found = predictions(engine)
    assert engine.failures == {"a": "RuntimeError: out of order"}
    assert pd.read_csv(tmp_path / "etta.csv")["case"].tolist() == ["b"]
    assert list(found) == ["b"]
    assert torch.equal(found["b"], predict(Tiny().eval(), image(ord("b")))[0])


def test_table_of_an_earlier_run_is_replaced_and_other_ranks_do_not_write(tmp_path, monkeypatch):
    network = Tiny().eval()
    for names in ("a", "b"):
        evaluator(network, cases(names), handlers=[ETTAHandler(LENIENT, output_dir=tmp_path)]).run()
    assert pd.read_csv(tmp_path / "etta.csv")["case"].tolist() == ["b"]
    monkeypatch.setattr("scripts.inference.table_handler.is_rank0", lambda: False)
    evaluator(network, cases("a"), handlers=[ETTAHandler(LENIENT, output_dir=tmp_path / "other")]).run()
    assert not (tmp_path / "other").exists()


def test_network_without_affine_normalization_is_refused_before_the_first_case():
    network = nn.Sequential(nn.Conv3d(1, 6, 1), nn.InstanceNorm3d(6), nn.Conv3d(6, 3, 1)).eval()
    engine = evaluator(network, cases("a"), handlers=[ETTAHandler(LENIENT)])
    with pytest.raises(InputError, match="Sequential has 1 normalization layers and none with weights to adapt"):
        engine.run()
    assert engine.state.iteration == 0


# Memory


def test_peak_memory_is_unknown_without_the_module_resource(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert pd.isna(peak_memory_mb(torch.device("cpu")))
    evaluator(Tiny().eval(), cases("a"), handlers=[ETTAHandler(LENIENT, output_dir=tmp_path)]).run()
    assert pd.read_csv(tmp_path / "etta.csv")["peak_memory_mb"].isna().all()


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3 * 2**10), ("darwin", 3)])
def test_peak_memory_has_the_unit_of_the_platform(monkeypatch, platform, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: resource.struct_rusage([0, 0, 3 * 2**20, *[0] * 13]))
    assert peak_memory_mb(None) == expected
