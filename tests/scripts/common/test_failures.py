import pytest

from scripts.common.failures import exit_if_failed, write_failures


def test_failures_are_written_and_those_of_an_earlier_run_removed(tmp_path):
    write_failures(tmp_path, {"a": "why, exactly", "b": "no"})
    assert (tmp_path / "failed.csv").read_text().splitlines() == ["case,reason", 'a,"why, exactly"', "b,no"]
    write_failures(tmp_path, {})
    assert not (tmp_path / "failed.csv").exists()


def test_program_ends_with_the_failed_cases_if_there_are_any():
    exit_if_failed({}, 7)
    with pytest.raises(SystemExit) as exit_info:
        exit_if_failed({"a": "why", "b": "no"}, 7)
    assert exit_info.value.code == "2 of 7 cases failed:\n  a: why\n  b: no"
