"""How many frames a second are segmented."""

from __future__ import annotations

import logging
import time

from ignite.engine import Engine, Events

from scripts.ultrabones.inferer import FrameInferer

logger = logging.getLogger(__name__)


class FrameRate:
    """Log at the end of a run how many frames per second the network predicted, and the whole run segmented.

    The run also reads, resizes and writes.

    Args:
        inferer: that of the run.
    """

    def __init__(self, inferer: FrameInferer) -> None:
        self.inferer = inferer
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self, _: Engine) -> None:
        self._started = time.perf_counter()
        self.inferer.frames, self.inferer.seconds = 0, 0.0

    def __call__(self, _: Engine) -> None:
        """Log both rates."""
        frames = self.inferer.frames
        rates = [frames / max(s, 1e-9) for s in (self.inferer.seconds, time.perf_counter() - self._started)]
        logger.info("%d frames: %.1f per second in the network, %.1f with reading and writing", frames, *rates)
