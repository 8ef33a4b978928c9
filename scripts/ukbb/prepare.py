"""Convert archives of UK Biobank's field 20201 (neck-to-knee Dixon MRI) to one 4-channel volume each.

`python -m scripts.prepare_ukbb ARCHIVES OUT`
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts.cohort.journal import Case, Journal
from scripts.cohort.run import run_cohort
from scripts.common.errors import InputError, raise_all
from scripts.common.failures import write_failures
from scripts.common.files import remove_leftovers
from scripts.common.fingerprint import fingerprint
from scripts.common.flags import parse_flag
from scripts.common.locks import FolderLock
from scripts.common.names import listed, printable
from scripts.common.small_counts import check_folder
from scripts.ukbb.stitching import SLICE_SPACING_MM
from scripts.ukbb.subject import ARCHIVE_NAME, Options, case_name, prepare_subject, result_paths
from scripts.ukbb.tables import AGGREGATE, STATIONS, SUBJECTS, write_counts, write_tables

logger = logging.getLogger(__name__)

SPACINGS_MM = (0.5, 20.0)


def prepare_ukbb(
    source: Path,
    out_dir: Path,
    *,
    options: Options,
    aggregate_only: bool = False,
    scheduler: str = "",
    workers: int = -1,
) -> dict[str, str]:
    """Prepare every archive; a run that was stopped goes on where it was.

    Args:
        source: folder of archives, searched with its subfolders, or one archive.
        out_dir: folder of `images`, `qc`, `subjects.csv`, `stations.csv`, `failed.csv` and the journal.
        options: how archives are prepared.
        aggregate_only: write `aggregate/aggregate.csv` in place of the tables with names.
        scheduler: address of a Dask scheduler; "" for processes on this machine.
        workers: processes on this machine; -1 for one per core, 0 to run in this process.

    Returns:
        The reasons of failed cases by name.

    Raises:
        InputError: there are no archives, two are of one case, `slice_spacing_mm` is out of range, or `out_dir` is in
            use or cannot be written.
    """
    low, high = SPACINGS_MM
    if not low <= options.slice_spacing_mm <= high:
        raise InputError(f"slice_spacing_mm is {options.slice_spacing_mm}: give {low} to {high}")
    if aggregate_only:
        check_folder((out_dir / AGGREGATE).parent, [Path(AGGREGATE).name])
    cases = find_cases(source)
    task = partial(prepare_subject, out_dir=out_dir.absolute(), options=options)
    with FolderLock(out_dir, setting="OUT"):
        for name in ("images", "qc"):
            remove_leftovers(out_dir / name)
        with Journal(out_dir / "journal.sqlite", settings=fingerprint(prepare_subject, options)) as journal:
            failures = run_cohort(
                task,
                cases,
                journal=journal,
                scheduler=scheduler,
                workers=workers,
                is_finished=lambda case: all(path.is_file() for path in result_paths(out_dir, case["case"])),
            )
            done = [case for case in cases if case["case"] not in failures]
            cohort = [json.loads(payload) for _, payload in journal.payloads(done)]
        write_failures(out_dir, failures)
        if aggregate_only:
            for name in (SUBJECTS, STATIONS):
                (out_dir / name).unlink(missing_ok=True)
            write_counts(out_dir, cohort, failed=len(failures))
        else:
            write_tables(out_dir, cohort)
    found = {
        "without some station": sum(bool(facts["missing_stations"]) for facts in cohort),
        "with exchanged fat and water": sum(bool(facts["swapped_stations"]) for facts in cohort),
        "with notes": sum(bool(facts["notes"]) for facts in cohort),
    }
    counts = ", ".join(f"{count} {what}" for what, count in found.items())
    logger.info("prepared %d of %d archives, %s: %s", len(cohort), len(cases), counts, out_dir)
    return failures


def find_cases(source: Path) -> list[Case]:
    """Return the archives as cases, sorted by name; others with the name of a zip file are left out with a warning.

    Raises:
        InputError: there is no archive, or two are of one case.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file; give a folder of archives such as 1234567_20201_2_0.zip")
    paths = sorted(path.absolute() for path in source.rglob("*.zip")) if source.is_dir() else [source.absolute()]
    others = [str(path) for path in paths if not ARCHIVE_NAME.fullmatch(path.name)]
    if others:
        logger.warning("left out %d files not named like 1234567_20201_2_0.zip: %s", len(others), listed(others))
    named = defaultdict(list)
    for path in paths:
        if ARCHIVE_NAME.fullmatch(path.name):
            named[case_name(path)].append(str(path))
    if not named:
        raise InputError(f"{printable(source)}: no archives such as 1234567_20201_2_0.zip; give field 20201")
    twice = [
        f"{', '.join(map(printable, same))}: {len(same)} archives of one case" for same in named.values() if same[1:]
    ]
    raise_all(twice, source, "keep one of each")
    return [{"case": name, "image": same[0]} for name, same in sorted(named.items())]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit code 2, failed archives with 1."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        flags = {name: parse_flag(getattr(args, name), name) for name in ("fix_swaps", "match", "n4", "aggregate_only")}
        aggregate_only = flags.pop("aggregate_only")
        failures = prepare_ukbb(
            args.archives,
            args.out,
            options=Options(**flags, slice_spacing_mm=args.slice_spacing_mm),
            aggregate_only=aggregate_only,
            scheduler=args.scheduler,
            workers=args.workers,
        )
    except (InputError, OSError) as error:
        parser.exit(2, f"prepare_ukbb: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "prepare_ukbb: stopped; run again to resume\n")
    if failures:
        logger.error("%d archives failed: see %s", len(failures), args.out / "failed.csv")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_ukbb", description=__doc__)
    parser.add_argument("archives", type=Path, help="folder of archives <eid>_20201_<instance>_<array>.zip, or one")
    parser.add_argument("out", type=Path, help="folder for volumes, pictures and tables")
    flag = {"metavar": "true|false"}
    parser.add_argument("--fix_swaps", default="false", **flag, help="exchange fat and water of swapped stations back")
    parser.add_argument("--match", default="true", **flag, help="match intensities between stations")
    parser.add_argument("--n4", default="false", **flag, help="correct the bias field of the coils with N4")
    parser.add_argument("--aggregate_only", default="false", **flag, help="write counts in place of tables with names")
    spacing = {"type": float, "default": SLICE_SPACING_MM}
    parser.add_argument("--slice_spacing_mm", **spacing, help="between slices of the result (default: 3)")
    parser.add_argument("--scheduler", default="", help="address of a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--workers", type=int, default=-1, help="processes; -1: one per core, 0: in this process")
    return parser
