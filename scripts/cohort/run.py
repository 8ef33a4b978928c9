"""Run a function on every case of a cohort: on all cores or a Dask cluster, restartable, one bad case at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from dask.system import CPU_COUNT

from scripts.cohort.attempts import CaseFunction, Outcome, attempt
from scripts.cohort.engine import local_client, remote_client, run_on_dask
from scripts.cohort.journal import Case, Journal
from scripts.progress import progress_bar

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
    desc: str = "cases",
) -> dict[str, str]:
    """Call `function` on each case that the journal does not hold, and keep what it returns there.

    A case that raises, or that kills its process, fails alone. A killed run leaves all but the last second's cases
    in the journal, and no processes.

    Args:
        function: of a case, returns bytes; picklable, and for a scheduler made of this package or of what its
            workers have installed. The same case must give the same bytes.
        cases: `{"case": distinct name, "image": path, …}`; workers need the same paths.
        journal: open.
        scheduler: address of a Dask scheduler, such as `tcp://host:8786`; "" runs on this machine.
        workers: processes on this machine; -1 takes one per core, 0 runs in this process without Dask, where a case
            that kills it ends the run.
        is_finished: says of a case in the journal whether its other results are still there.
        warm_up: called once before other processes start, such as `scripts.solf.features.compile_features`.
        desc: word in front of the progress bar.

    Returns:
        Why cases failed, by name, in the order of `cases`.

    Raises:
        ValueError: names repeat, workers is below -1, the scheduler cannot be reached or was lost, or the journal
            cannot be written.
    """
    _check(cases, workers)
    finished = journal.finished(cases)
    todo = [case for case in cases if case["case"] not in finished or (is_finished and not is_finished(case))]
    failures: dict[str, str] = {}
    with progress_bar(total=len(cases), initial=len(cases) - len(todo), desc=desc, unit="case") as bar:

        def record(case: Case, outcome: Outcome) -> None:
            if outcome.failure:
                failures[case["case"]] = outcome.failure
                logger.error("case %s failed: %s", case["case"], outcome.failure)
            else:
                journal.put(case, outcome.payload)
            bar.update()

        if todo:
            _run(function, todo, journal, record, scheduler=scheduler, workers=workers, warm_up=warm_up)
    journal.commit()
    return {case["case"]: failures[case["case"]] for case in todo if case["case"] in failures}


def _check(cases: Sequence[Case], workers: int) -> None:
    name, times = next(iter(Counter(case["case"] for case in cases).most_common(1)), ("", 0))
    if times > 1:
        raise ValueError(f'{times} cases are named "{name}": give each a name of its own.')
    if workers < -1:
        raise ValueError(f"--workers {workers}: give -1 for all cores, 0 for none but this process, or their number.")


def _run(
    function: CaseFunction,
    cases: Sequence[Case],
    journal: Journal,
    record: Callable[[Case, Outcome], None],
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
