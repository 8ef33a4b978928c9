"""Progress bars."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Make a tqdm bar that is refreshed twice a second on a terminal, and every 30 seconds in a log file."""
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else 30.0, dynamic_ncols=True, **options)
