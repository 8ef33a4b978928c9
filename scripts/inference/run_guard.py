"""What surrounds the run of an engine, from before its first event until after its last, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from scripts.common.locks import FolderLock
from scripts.common.ranks import is_rank0
from scripts.inference.loader import end_worker_on_queue_error


def surround_run(engine: Engine, context: Callable[[], AbstractContextManager]) -> None:
    """Let each run of an engine happen inside of a context.

    Not by events, as none follows each end: of the handlers of EXCEPTION_RAISED, Ignite (0.5.5) skips those after the
    first that raises.

    Args:
        engine: its method `run` is replaced.
        context: makes a context manager for each run.
    """
    run = engine.run

    @wraps(run)
    def surrounded(*args: Any, **kwargs: Any) -> Any:
        with context():
            return run(*args, **kwargs)

    engine.run = surrounded


class RunGuard:
    """Keep other runs out of the folder that a training writes to; see `scripts.common.locks.FolderLock`.

    Args:
        folder: created if it is missing.
        setting: the setting that names the folder, for the messages.

    Raises:
        InputError: when the run starts, if another one is using the folder or it cannot be written.
    """

    def __init__(self, folder: str | Path, *, setting: str) -> None:
        self.folder, self.setting = folder, setting

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        surround_run(engine, self._guarded)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        end_worker_on_queue_error()
        with FolderLock(self.folder, setting=self.setting) if is_rank0() else nullcontext():
            yield
