import pytest

from scripts.common.errors import InputError
from scripts.common.failures import exit_if_failed, read_failures, write_failures


def test_failures_are_read_back_and_those_of_an_earlier_run_removed(tmp_path):
    write_failures(tmp_path, {"a": "why, exactly", "b": "no"})
    assert (tmp_path / "failed.csv").read_text() == 'case,reason\na,"why, exactly"\nb,no\n'
    assert read_failures(tmp_path) == {"a": "why, exactly", "b": "no"}
    write_failures(tmp_path, {})
    assert not (tmp_path / "failed.csv").exists()
    assert read_failures(tmp_path) == {}


def test_another_table_of_that_name_is_refused(tmp_path):
    (tmp_path / "failed.csv").write_text("case,spleen\na,1\n")
    with pytest.raises(InputError, match=r"failed\.csv: its columns are not those of this run \(spleen, reason\)"):
        read_failures(tmp_path)


def test_program_ends_with_the_failed_cases_if_there_are_any():
    exit_if_failed({}, 7)
    with pytest.raises(SystemExit) as exit_info:
        exit_if_failed({"a": "why", "b": "no"}, 7)
    assert exit_info.value.code == "2 of 7 cases failed:\n  a: why\n  b: no"
