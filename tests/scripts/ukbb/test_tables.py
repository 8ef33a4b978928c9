import csv

import pytest

from scripts.common.errors import InputError
from scripts.ukbb.tables import write_counts, write_tables


def facts(number, **changes):
    station = {"station": 1, "series": "Dixon_noBH", "shape": [4, 5, 6], "repeats": 0, "unequal": "", "factor": 1.0}
    base = {"case": f"{number}_2_0", "shape": [9, 9, 9], "missing_stations": [], "gaps": [], "swapped_stations": []}
    return {**base, "stations": [{**station, **changes.pop("station", {})}], "notes": [], **changes}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_name_subjects_and_stations(tmp_path):
    gap = {"first_slice": 3, "last_slice": 7, "mm": [0, 1]}
    found = facts(
        12, missing_stations=[2, 4], gaps=[gap], swapped_stations=[5], station={"repeats": 1}, notes=["a", "b"]
    )
    write_tables(tmp_path, [found, facts(13)])
    first, second = read(tmp_path / "subjects.csv")
    assert first == {
        **{"case": "12_2_0", "eid": "12", "instance": "2", "array": "0", "shape": "9x9x9", "stations": "1"},
        **{"missing": "2 4", "gaps": "3-7", "swapped": "5", "repeated": "1", "unequal": "", "notes": "a; b"},
    }
    assert second["missing"] == second["notes"] == ""
    assert read(tmp_path / "stations.csv")[0]["shape"] == "4 5 6"


def test_counts_name_nobody_and_hide_small_numbers(tmp_path):
    cohort = [
        facts(n, missing_stations=[6] if n < 20 else [], swapped_stations=[2] if n < 3 else []) for n in range(100)
    ]
    write_counts(tmp_path, cohort, failed=7)
    counts = {row["finding"]: row["archives"] for row in read(tmp_path / "aggregate" / "aggregate.csv")}
    assert counts["all"] == "107"
    assert counts["prepared"] == "100"
    assert counts["station 6 missing"] == counts["any missing"] == "20"
    assert counts["station 2 exchanged"] == counts["any swapped"] == counts["station 1 missing"] == "<5"
    assert "_2_0" not in (tmp_path / "aggregate" / "aggregate.csv").read_text()


def test_number_of_failed_archives_cannot_be_computed(tmp_path):
    write_counts(tmp_path, [facts(n, notes=["x"]) for n in range(50)], failed=1)
    counts = {row["finding"]: row["archives"] for row in read(tmp_path / "aggregate" / "aggregate.csv")}
    assert counts["all"] == "51"
    assert counts["prepared"] == ">46"
    assert counts["any notes"] == "withheld"


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "aggregate").mkdir()
    (tmp_path / "aggregate" / "names.csv").touch()
    with pytest.raises(InputError, match=r"holds 'names.csv', which is no aggregated result"):
        write_counts(tmp_path, [], failed=0)
