"""Progress of a training run."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import StatsHandler

from scripts.inference.progress import CaseProgress
from scripts.training.throughput import Throughput


class TrainProgress(CaseProgress):
    """Show the iterations of the whole run with loss, last validation score, throughput and time left.

    List it after `Resume`, so that the bar of a resumed run starts at its epoch.

    Args:
        evaluator: the validation engine whose key metric is shown.
    """

    unit = "step"

    def __init__(self, evaluator: Engine) -> None:
        super().__init__("training")
        self.evaluator = evaluator

    def advance(self, engine: Engine) -> None:
        """Count one iteration."""
        loss = engine.state.output[0]["loss"]
        shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", "loss": f"{float(loss):.3f}"}
        metrics, name = self.evaluator.state.metrics, self.evaluator.state.key_metric_name
        if name in metrics:
            shown[name] = f"{metrics[name]:.3f}"
        if Throughput.rate in engine.state.metrics:
            shown["samples/s"] = f"{engine.state.metrics[Throughput.rate]:.3g}"
            shown["data wait"] = f"{engine.state.metrics[Throughput.wait]:.0%}"
        self.bar.set_postfix(shown, refresh=False)
        super().advance(engine)


class EpochStats(StatsHandler):
    """MONAI's `StatsHandler`, which logs the traceback of whatever ends the run, be it Ctrl-C or an error in the input.

    Here the error is only raised again, as `scripts.common.errors.print_error` shows it once, at the end.
    """

    def exception_raised(self, _engine: Engine, e: Exception) -> None:
        """Raise the error again; without a handler of this event, Ignite does the same."""
        raise e
