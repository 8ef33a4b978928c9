"""Progress over cases."""

from __future__ import annotations

from ignite.engine import Engine, Events

from scripts.common.progress import closed_bars, progress_bar
from scripts.inference.run_guard import surround_run


class CaseProgress:
    """Show the finished cases, their rate and the time left; the inferer shows each case's windows below.

    The bars are closed however the run ends. Ignite's `ProgressBar` (0.5.5) appears only after the first case, which it
    leaves out of the rate, and counts epochs one by one.

    Args:
        desc: word in front of the bar.
    """

    unit = "case"

    def __init__(self, desc: str = "cases") -> None:
        self.desc = desc
        self.bar = None

    def attach(self, engine: Engine) -> None:
        """Attach to an engine."""
        engine.add_event_handler(Events.STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        surround_run(engine, closed_bars)

    def open(self, engine: Engine) -> None:
        """Open the bar over all iterations of the run; a resumed one starts at its iteration."""
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = progress_bar(total=total, initial=engine.state.iteration, desc=self.desc, unit=self.unit)

    def advance(self, _: Engine) -> None:
        """Count one iteration."""
        self.bar.update()
