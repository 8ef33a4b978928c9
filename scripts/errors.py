"""What a person at a terminal reads when a run cannot go on."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

OURS = (ValueError, FileNotFoundError)


def reason(error: BaseException) -> str:
    """Return on one line why a chain of `raise … from` began.

    An error that this package raises explains itself and hides the library error behind it; wrappers that MONAI puts
    around it are skipped.
    """
    error = root(error)
    text = " ".join(str(error).split()) or type(error).__name__
    torch = sys.modules.get("torch")  # not imported for this: a second in each process of a cohort
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        text += " (lower --sw_batch_size, or keep the stitched logits on the CPU with --sw_device cpu)"
    return text


def root(error: BaseException) -> BaseException:
    """Follow a chain of causes to the first error that this package raised, or to its beginning."""
    while error.__cause__ is not None and not is_ours(error):
        error = error.__cause__
    return error


def is_ours(error: BaseException) -> bool:
    """Tell whether an error was raised by this package, with a message for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).resolve().parent
    return isinstance(error, OURS) and bool(frames) and here in Path(frames[-1].filename).resolve().parents


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what went wrong: one line for bad input, the whole traceback before it for anything else."""
    if sys.flags.dev_mode or not is_ours(root(error)):
        sys.__excepthook__(kind, error, trace)
    if not isinstance(error, KeyboardInterrupt):
        message = str(root(error)) if is_ours(root(error)) else reason(error)
        sys.stderr.write(f"\nerror: {message}\n")


def install_in_bundle_runs() -> None:
    """Make `python -m monai.bundle` end with the reason of an error; leave all other programs alone.

    MONAI wraps an error of a component in `Failed to instantiate component …` at the end of a long traceback,
    where nobody finds the reason. `python -X dev -m monai.bundle …` shows the traceback as well.
    """
    if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py"):
        sys.excepthook = explain


def raise_all(problems: Sequence[str], where: object, mend: str) -> None:
    """Raise one error that lists all problems, a line each; nothing where there is none.

    Args:
        problems: what is wrong, the path first.
        where: file, folder or step that was looked through.
        mend: what to do about it.

    Raises:
        ValueError: there is a problem.
    """
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError("\n".join([f"{where}: {count}; {mend}", *problems]))
