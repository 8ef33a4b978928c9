"""Progress bars: epochs and their loss in training, cases in inference."""

from __future__ import annotations

import sys

from ignite.engine import Engine, Events
from tqdm import tqdm


def progress_bar(**options: object) -> tqdm:
    """Make a bar that redraws often on a terminal and seldom in a log file."""
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else 30.0, dynamic_ncols=True, **options)


class TrainProgress:
    """Show the iterations of the whole run with loss, last validation score and time left.

    List it after `Resume`, so that a resumed run starts where it stood.

    Args:
        evaluator: the validation engine whose key metric is shown.
    """

    def __init__(self, evaluator: Engine) -> None:
        self.evaluator = evaluator
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.abort)

    def open(self, engine: Engine) -> None:
        """Open the bar."""
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = progress_bar(total=total, initial=engine.state.iteration, desc="training", unit="step")

    def advance(self, engine: Engine) -> None:
        """Count one iteration."""
        loss = engine.state.output[0]["loss"]
        shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", "loss": f"{float(loss):.3f}"}
        metrics, name = self.evaluator.state.metrics, self.evaluator.state.key_metric_name
        if name in metrics:
            shown[name] = f"{metrics[name]:.3f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def close(self, _: Engine) -> None:
        """Close the bar."""
        self.bar.close()

    def abort(self, _: Engine, error: BaseException) -> None:
        """Close the bar and let the error pass."""
        if self.bar is not None:
            self.bar.close()
        raise error


class CaseProgress:
    """Show the cases done, their rate and the time left; the inferer shows each case's windows beneath.

    Args:
        desc: word in front of the bar.
    """

    def __init__(self, desc: str = "cases") -> None:
        self.desc = desc
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.close)

    def open(self, engine: Engine) -> None:
        """Open the bar."""
        self.bar = progress_bar(total=engine.state.epoch_length, desc=self.desc, unit="case")

    def advance(self, _: Engine) -> None:
        """Count one case."""
        self.bar.update()

    def close(self, _: Engine) -> None:
        """Close the bar."""
        self.bar.close()
