import io

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler

from scripts.inference.progress import CaseProgress


def failing_engine(kind=ValueError):
    def step(engine, batch):
        if batch == 2:
            raise kind("third case")

    return Engine(step)


@pytest.mark.parametrize("with_stats", [True, False])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_bar_is_closed_and_the_error_raised_when_a_run_fails(kind, with_stats):
    engine, progress = failing_engine(kind), CaseProgress()
    progress.attach(engine)
    if with_stats:
        StatsHandler(name="stats", iteration_log=False).attach(engine)
    with pytest.raises(kind, match="third case"):
        engine.run([0, 1, 2, 3])
    assert progress.bar.disable, "tqdm disables a bar when it is closed"
    assert progress.bar.n == 2


def test_error_in_a_monai_evaluator_reaches_the_caller():
    def fail(engine):
        raise RuntimeError("handler failed")

    progress = CaseProgress()
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[{"image": torch.zeros(1, 1, 2, 2)}],
        network=torch.nn.Identity(),
        val_handlers=[progress, StatsHandler(name="stats", iteration_log=False)],
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, fail)
    with pytest.raises(RuntimeError, match="handler failed"):
        evaluator.run()
    assert progress.bar.disable


def test_error_before_the_bar_is_open_is_raised():
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, lambda: (_ for _ in ()).throw(ValueError("no weights")))
    CaseProgress().attach(engine)
    with pytest.raises(ValueError, match="no weights"):
        engine.run([0])


def test_bar_counts_the_cases_of_all_epochs(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    engine, progress = Engine(lambda engine, batch: None), CaseProgress("segmenting")
    progress.attach(engine)
    engine.run(range(3), max_epochs=2)
    assert (progress.bar.n, progress.bar.total, progress.bar.desc, progress.bar.unit) == (6, 6, "segmenting", "case")
    assert progress.bar.disable
