"""The report's folder: replaced as a whole; data are scripts, because pages opened from disk may not fetch files."""

from __future__ import annotations

import base64
import gzip
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError

ASSETS = Path(__file__).with_name("assets")
_TEMPORARY = ".tmp-qc-"
_OF_EARLIER_VERSIONS = {"lib", "pictures", "charts.js"}


def check_report(final: Path) -> None:
    """Check that a folder can become the report, before anything is computed.

    Args:
        final: the folder of the report; it need not exist.

    Raises:
        InputError: `final` exists and is not a report.
    """
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise InputError(f"{final}: is not a folder, so it is not a report; move it away.")
    own = {"data", *_OF_EARLIER_VERSIONS, *(asset.name for asset in ASSETS.iterdir())}
    foreign = {path.name for path in final.glob("[!.]*")} - own
    if foreign:
        raise InputError(f"{final}: holds {min(foreign)}, so it is not a report; move it away.")


def remove_unfinished(folder: Path) -> None:
    """Remove the reports that killed runs left in a folder; call this only if no other run writes there."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder with the page, which replaces `final` when the block ends well.

    Folders cannot be exchanged in one step: a process that is killed between the two renames leaves the old report
    under a temporary name, which the next run removes.

    Args:
        final: the folder to write; an older report stays there until the new one is complete.

    Raises:
        InputError: `final` exists and is not a report, or cannot be written.
    """
    check_report(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(final.parent)
    temporary = final.with_name(_TEMPORARY + secrets.token_hex(8))
    try:
        (temporary / "data").mkdir(parents=True)
        for asset in sorted(ASSETS.iterdir()):
            shutil.copyfile(asset, temporary / asset.name)
        yield temporary
        if final.exists():
            old = final.rename(final.with_name(_TEMPORARY + secrets.token_hex(8)))
            temporary.rename(final)
            shutil.rmtree(old)
        else:
            temporary.rename(final)
    except BaseException as error:  # Ctrl-C too must leave nothing behind
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            why = error.strerror or error
            raise InputError(f"{final}: cannot be written ({why}); free space or correct the folder.") from error
        raise


def write_data(folder: Path, name: str, data: Any) -> None:
    """Write `data/<name>.js`, a script that passes its data, as JSON in gzip and base64, to the page that loads it.

    Args:
        folder: the report's folder.
        name: name under which the page loads it.
        data: plain values; NaN is not one.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).encode("ascii")
    packed = base64.b64encode(gzip.compress(text, 6, mtime=0)).decode("ascii")
    (folder / "data" / f"{name}.js").write_text(f'qc.receive("{name}","{packed}");\n', encoding="ascii")
