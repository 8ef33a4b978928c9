import pytest

from tools import generated


@pytest.mark.parametrize("words", [["tool"], ["tool", "--check"]])
def test_files_that_differ_are_written_or_only_named(words, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", words)
    caplog.set_level("INFO")
    (tmp_path / "same.md").write_text("same")
    (tmp_path / "old.md").write_text("old")
    files = {tmp_path / "same.md": "same", tmp_path / "old.md": "changed", tmp_path / "new.md": "new"}
    check = "--check" in words
    assert generated.write_or_check(files, "A tool.") == int(check)
    how = "would change" if check else "written"
    assert caplog.messages == [f"old.md: {how}", f"new.md: {how}"]
    assert (tmp_path / "old.md").read_text() == ("old" if check else "changed")
    assert (tmp_path / "new.md").exists() != check
    assert generated.write_or_check(files, "A tool.") == int(check)
