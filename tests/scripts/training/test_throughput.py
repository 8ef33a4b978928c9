import pytest
from ignite.engine import Engine

from scripts.training import throughput
from scripts.training.throughput import Throughput


def test_samples_and_waiting_are_counted_anew_in_each_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    class Slow:
        def __len__(self):
            return 4

        def __iter__(self):
            for number in range(4):
                now[0] += 1.0
                yield number

    def step(engine, batch):
        now[0] += 3.0
        return [{"loss": 0.0}] * 2

    engine = Engine(step)
    Throughput().attach(engine)
    for _ in range(2):
        engine.run(Slow(), max_epochs=1)
        now[0] += 1000.0
        assert engine.state.metrics == {
            "samples_per_second": pytest.approx(8 / 16),
            "data_wait_share": pytest.approx(1 / 4),
        }
