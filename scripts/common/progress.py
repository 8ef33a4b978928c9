"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Make a tqdm bar that is refreshed twice a second on a terminal, and every 30 seconds in a log file."""
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else 30.0, dynamic_ncols=True, **options)


@contextmanager
def closed_bars() -> Iterator[None]:
    """Close the bars that are opened in the block and end their lines, also those that an exception interrupted."""
    earlier = {id(bar) for bar in tqdm._instances}
    try:
        yield
    finally:
        bars = [bar for bar in tqdm._instances if id(bar) not in earlier]
        for bar in sorted(bars, key=lambda bar: bar.pos):  # the lowest line first
            bar.close()
