"""What the commands that convert weights share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from scripts.models.weight_files import save

logger = logging.getLogger(__name__)


def check_target(source: Path, target: Path) -> None:
    """Refuse to write weights to a file of another name than `.pt`, to a folder or over the source.

    Raises:
        InputError: see above.
    """
    if target.suffix != ".pt":
        raise InputError(f"{target}: not a name for weights: give a path that ends in .pt.")
    if target.is_dir() or (target.exists() and source.exists() and target.samefile(source)):
        raise InputError(f"{target}: is {'a folder' if target.is_dir() else 'the source itself'}: give another file.")


def write_weights(state: Mapping[str, torch.Tensor], target: Path) -> None:
    """Write a state dict while no other run writes to its folder.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with FolderLock(target.parent, setting="target"):
            save(state, target)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = str(error).partition("\n")[0]
        raise InputError(f"{target}: cannot be written ({reason}): free disk space, or give another file.") from error


def exit_code(convert_and_report: Callable[[], None]) -> int:
    """Run a conversion, log what stops it, and return the exit code of the command, 2 where nothing was written."""
    try:
        convert_and_report()
    except (InputError, OSError) as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("stopped, nothing was written")
        return 130
    return 0
