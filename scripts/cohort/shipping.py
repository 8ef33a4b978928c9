"""Send this package to Dask workers that lack it, or have another version.

What Dask itself has to unpickle, on a scheduler or a worker without this package, is defined inside functions here:
such classes and functions are pickled by value, all others by name.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from distributed import Client, WorkerPlugin

PACKAGE = Path(__file__).absolute().parents[1]
ROOT = str(PACKAGE.parent)
_SHIPPED = (".py", ".json", ".nbi", ".nbc")  # the last two: numba's cache, valid for the same CPU and versions


def ship_code(client: Client) -> str:
    """Unpack this package on all workers, also on those that join later.

    Args:
        client: of the scheduler.

    Returns:
        The folder to import it from, relative to a worker's own. It is named after the code, so that runs with
        several versions can share workers.

    Raises:
        Exception: what a worker raised on unpacking.
    """
    archive, digest = io.BytesIO(), hashlib.sha256()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in _SHIPPED):
            name, content = f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}", path.read_bytes()
            file.writestr(name, content)
            if path.suffix == ".py":
                digest.update(f"{name} {len(content)} ".encode() + content)
    folder = f"{PACKAGE.name}-{digest.hexdigest()[:16]}"
    client.register_plugin(_unpacking(folder, archive.getvalue()), name=folder)
    return folder


def _unpacking(folder: str, archive: bytes) -> WorkerPlugin:
    class Unpack(WorkerPlugin):
        idempotent = True

        def setup(self, worker: object) -> None:
            import io
            import zipfile
            from pathlib import Path

            with zipfile.ZipFile(io.BytesIO(archive)) as file:
                file.extractall(Path(worker.local_directory, folder))

    return Unpack()


def worker_task(folder: str, packed: bytes, *, alone: bool) -> Callable[[Mapping[str, str]], tuple[bytes, str, str]]:
    """Return what a worker runs on a case.

    Args:
        folder: to import this package from; relative to the worker's own folder.
        packed: the function of a case, as `cloudpickle.dumps` packs it.
        alone: in a separate process.

    Returns:
        A function of a case that returns the fields of an `CaseResult`.
    """

    def run_case(case: Mapping[str, str]) -> tuple[bytes, str, str]:
        import sys
        from pathlib import Path

        from distributed import get_worker

        root = str(Path(get_worker().local_directory, folder))
        package = sys.modules.get("scripts")
        if package is None or str(Path(package.__file__).parents[1]) != root:
            for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
                del sys.modules[name]
            sys.path.insert(0, root)
        from scripts.cohort.attempts import attempt, attempt_alone

        if alone:
            return tuple(attempt_alone(packed, case))
        return tuple(attempt(packed, case))

    return run_case
