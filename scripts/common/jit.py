"""Functions that numba compiles at the first call, cached beside their file or in the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, without Python's lock."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder that numba may write to: compile in every process
        return numba.njit(nogil=True)(function)
