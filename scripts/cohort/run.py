"""Run a function on every case of a cohort, on all cores or a Dask cluster; a killed run can be resumed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from dask.system import CPU_COUNT

from scripts.cohort.attempts import CaseFunction, CaseResult, attempt
from scripts.cohort.engine import local_client, remote_client, run_on_dask
from scripts.cohort.journal import Case, Journal
from scripts.common.errors import InputError, raise_all
from scripts.common.progress import progress_bar
from scripts.common.settings import setting_problems

MAX_WORKERS = max(64, 4 * CPU_COUNT)
logger = logging.getLogger(__name__)


def run_cohort(
    function: CaseFunction,
    cases: Sequence[Case],
    *,
    journal: Journal,
    scheduler: str = "",
    workers: int = -1,
    is_finished: Callable[[Case], bool] | None = None,
    warm_up: Callable[[], object] | None = None,
) -> dict[str, str]:
    """Call `function` on each case that the journal does not hold, and store its result there.

    A case that raises an error, crashes its process, or whose file changes meanwhile, does not stop the run. A killed
    run loses the cases of its last second, and leaves no processes behind.

    Args:
        function: takes a case and returns bytes, the same ones for the same case; picklable. Workers of a scheduler
            get a copy of this package; other code must be installed there.
        cases: `{"case": distinct name, "image": path, ...}`; workers need the same paths.
        journal: an open journal.
        scheduler: address of a Dask scheduler, such as `tcp://host:8786`; "" runs on this machine.
        workers: processes on this machine; -1 for one per core, 0 to run in this process without Dask, where a crash
            ends the run.
        is_finished: returns whether the other results of a case in the journal still exist.
        warm_up: called once before other processes start, for example to compile code.

    Returns:
        The reasons of failed cases by name, in the order of `cases`.

    Raises:
        InputError: a name repeats or is not valid UTF-8, workers is below -1, the scheduler cannot be reached or was
            lost, or the journal cannot be written.

    >>> import tempfile
    >>> cases = [{"case": "a", "image": "a.nii.gz"}, {"case": "b", "image": "b.nii.gz"}]
    >>> with Journal(f"{tempfile.mkdtemp()}/journal.sqlite", settings="") as journal:
    ...     failures = run_cohort(lambda case: case["image"].encode(), cases, journal=journal, workers=0)
    ...     list(journal.payloads(cases))
    [('a', b'a.nii.gz'), ('b', b'b.nii.gz')]
    """
    raise_all(setting_problems({"scheduler": scheduler, "workers": workers}), "cohort", "correct the settings")
    if workers > MAX_WORKERS:
        raise InputError(f"workers is {workers}: this machine has {CPU_COUNT} cores; give {MAX_WORKERS} at most.")
    _check_names(cases)
    finished = journal.finished(cases)
    todo = [case for case in cases if case["case"] not in finished or (is_finished and not is_finished(case))]
    failures: dict[str, str] = {}
    with progress_bar(total=len(cases), initial=len(cases) - len(todo), desc="cases", unit="case") as bar:

        def record(case: Case, outcome: CaseResult) -> None:
            if not outcome.failure and journal.is_changed(case):
                outcome = CaseResult(b"", f"{case['image']}: changed while it was processed; run again.")
            if outcome.failure:
                failures[case["case"]] = outcome.failure
                logger.error("case %s failed: %s%s", case["case"], outcome.failure, f"\n{outcome.trace}".rstrip())
            else:
                journal.put(case, outcome.payload)
            bar.update()

        if todo:
            _run(function, todo, journal, record, scheduler=scheduler, workers=workers, warm_up=warm_up)
    journal.commit()
    return {case["case"]: failures[case["case"]] for case in todo if case["case"] in failures}


def _check_names(cases: Sequence[Case]) -> None:
    names = Counter(case["case"] for case in cases)
    name, times = next(iter(names.most_common(1)), ("", 0))
    if times > 1:
        raise InputError(f'{times} cases are named "{name}": give each a distinct name.')
    if undecodable := [name for name in names if name.encode(errors="ignore").decode() != name]:
        raise InputError(f"case {undecodable[0]!r}: its name is not valid UTF-8; rename the file.")


def _run(
    function: CaseFunction,
    cases: Sequence[Case],
    journal: Journal,
    record: Callable[[Case, CaseResult], None],
    *,
    scheduler: str,
    workers: int,
    warm_up: Callable[[], object] | None,
) -> None:
    if warm_up is not None:
        warm_up()
    if not scheduler and workers == 0:
        for case in cases:
            record(case, attempt(function, case))
        return
    processes = min(CPU_COUNT if workers == -1 else workers, len(cases))
    with remote_client(scheduler) if scheduler else local_client(processes) as client:
        run_on_dask(client, function, cases, remote=bool(scheduler), record=record, tick=journal.commit_due)
