from scripts.failures import failure_message, write_failures


def test_failures_are_written_and_those_of_an_earlier_run_removed(tmp_path):
    write_failures(tmp_path, {"a": "why, exactly", "b": "no"})
    assert (tmp_path / "failed.csv").read_text().splitlines() == ["case,reason", 'a,"why, exactly"', "b,no"]
    assert failure_message({"a": "why"}, 7) == "1 of 7 cases failed:\n  a: why"
    write_failures(tmp_path, {})
    assert not (tmp_path / "failed.csv").exists()
