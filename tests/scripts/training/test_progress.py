import re
import types

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler

from scripts.training.progress import EpochStats, TrainProgress
from scripts.training.throughput import Throughput


def evaluator(**metrics):
    return types.SimpleNamespace(state=types.SimpleNamespace(metrics=metrics, key_metric_name="val_mean_dice"))


def run(progress, *handlers, fail_at=None, max_epochs=2):
    def step(engine, batch):
        if engine.state.iteration == fail_at:
            raise ValueError("a crop is too small")
        return [{"loss": torch.tensor(0.25)}]

    engine = Engine(step)
    for handler in (progress, *handlers):
        handler.attach(engine)
    engine.run(range(3), max_epochs=max_epochs)


def test_bar_shows_epoch_loss_and_the_last_validation_score():
    progress = TrainProgress(evaluator(val_mean_dice=0.5))
    run(progress)
    assert (progress.bar.n, progress.bar.total, progress.bar.unit) == (6, 6, "step")
    assert progress.bar.postfix == "epoch=2/2, loss=0.250, val_mean_dice=0.500"


def test_bar_shows_samples_per_second_and_the_share_of_waiting():
    progress = TrainProgress(evaluator())
    run(Throughput(), progress)
    assert re.search(r", samples/s=[\d.e+]+, data wait=\d+%$", progress.bar.postfix)


def test_bar_shows_no_score_before_the_first_validation():
    progress = TrainProgress(evaluator())
    run(progress, max_epochs=1)
    assert progress.bar.postfix == "epoch=1/1, loss=0.250"


def test_bar_of_a_resumed_run_starts_at_its_epoch():
    progress, engine = TrainProgress(evaluator()), Engine(lambda engine, batch: [{"loss": 0.0}])
    progress.attach(engine)
    engine.load_state_dict({"epoch": 2, "max_epochs": 3, "epoch_length": 4})
    engine.run(range(4))
    assert (progress.bar.initial, progress.bar.n, progress.bar.total) == (8, 12, 12)


def test_bar_is_closed_and_the_error_raised_when_training_fails():
    progress = TrainProgress(evaluator())
    with pytest.raises(ValueError, match="a crop is too small"):
        run(progress, StatsHandler(name="stats", iteration_log=False), fail_at=3)
    assert progress.bar.disable, "tqdm disables a bar when it is closed"
    assert progress.bar.n == 2


def test_error_in_a_monai_trainer_reaches_the_caller():
    network = torch.nn.Linear(2, 2)
    progress = TrainProgress(evaluator())
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.zeros(1, 2), "label": torch.zeros(1, 3)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=torch.nn.L1Loss(),
        train_handlers=[progress, StatsHandler(name="stats", iteration_log=False)],
    )
    with pytest.raises(RuntimeError, match="must match the size"):
        trainer.run()
    assert progress.bar.disable


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_stats_log_epochs_but_not_the_error_that_ends_the_run(error, caplog):
    engine = Engine(lambda engine, batch: [{"loss": 0.25}])
    stats = EpochStats(name="stats", iteration_log=False, epoch_print_logger=lambda engine: stats.logger.info("epoch"))
    stats.attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def fail(engine):
        raise error("while training")

    with caplog.at_level("INFO"), pytest.raises(error, match="while training"):
        engine.run(range(3), max_epochs=2)
    assert [record.getMessage() for record in caplog.records if record.name == "stats"] == ["epoch"]
