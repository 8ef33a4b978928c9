import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cohort import journal as module
from scripts.cohort.journal import Journal
from scripts.common.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cases(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.nii").write_text(name)
    return [{"case": name, "image": str(tmp_path / f"{name}.nii")} for name in "abc"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "journal.sqlite"


def fill(path, cases, settings="epsilon 2"):
    with Journal(path, settings=settings) as journal:
        for case in cases:
            journal.put(case, case["case"].encode() * 3)


def test_finished_cases_are_known_to_the_next_run(path, cases):
    fill(path, cases[:2])
    with Journal(path, settings="epsilon 2") as journal:
        assert journal.finished(cases) == {"a", "b"}
        assert journal.finished(cases[1:]) == {"b"}


def test_payloads_come_in_the_order_asked_for_without_the_unfinished(path, cases):
    fill(path, cases[:2])
    with Journal(path, settings="epsilon 2") as journal:
        assert list(journal.payloads(reversed(cases))) == [("b", b"bbb"), ("a", b"aaa")]


@pytest.mark.parametrize("change", ["size", "mtime", "path", "settings", "gone"])
def test_case_with_another_file_or_settings_is_not_finished_and_is_replaced(path, cases, change, tmp_path):
    fill(path, cases)
    file, settings, case = tmp_path / "a.nii", "epsilon 2", dict(cases[0])
    if change == "size":
        before_ns = file.stat().st_mtime_ns
        file.write_text("longer")
        os.utime(file, ns=(before_ns, before_ns))
    elif change == "mtime":
        os.utime(file, ns=(1, 1))
    elif change == "gone":
        file.unlink()
    elif change == "path":
        case["image"] = str(tmp_path / "b.nii")
    else:
        settings = "epsilon 3"
    with Journal(path, settings=settings) as journal:
        assert journal.finished([case]) == set()
        assert list(journal.payloads([case])) == []
        journal.put(case, b"new")
        assert list(journal.payloads([case])) == [("a", b"new")]
    with Journal(path, settings=settings) as journal:
        assert journal.finished([case]) == {"a"}


def test_case_with_other_entries_is_not_finished_but_empty_ones_do_not_count(path, cases):
    fill(path, [{**cases[0], "verdicts": ""}, {**cases[1], "verdicts": "x"}, cases[2]])
    given = [{**cases[0]}, {**cases[1], "verdicts": "y"}, {**cases[2], "label": ""}]
    with Journal(path, settings="epsilon 2") as journal:
        assert journal.finished(given) == {"a", "c"}


def test_finished_cases_do_not_depend_on_the_modules_that_a_process_has_imported(path, cases):
    code = (
        "import json, sys\n"
        "from scripts.cohort.journal import Journal\n"
        "assert 'torch' not in sys.modules\n"
        "cases = json.loads(sys.argv[2])\n"
        "with Journal(sys.argv[1], settings='same') as journal:\n"
        "    journal.put(cases[0], b'1')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path), json.dumps(cases)], cwd=ROOT, check=True)
    with Journal(path, settings="same") as journal:
        assert journal.finished(cases) == {"a"}


def test_times_are_compared_for_equality_only(path, cases, tmp_path, monkeypatch):
    """The clock of the machine does not matter: it may go backwards, and files may come from the future."""
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    for seconds, finished in ((2**33, set()), (2**33, {"a"}), (2**31, set()), (-5, set()), (-5, {"a"})):
        os.utime(tmp_path / "a.nii", (seconds, seconds))
        with Journal(path, settings="") as journal:
            assert journal.finished(cases) == finished
            journal.put(cases[0], b"1")


def test_other_content_of_the_same_size_and_time_is_not_detected(path, cases, tmp_path):
    fill(path, cases)
    file = tmp_path / "a.nii"
    before = file.stat()
    file.write_text("z")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with Journal(path, settings="epsilon 2") as journal:
        assert journal.finished(cases) == {"a", "b", "c"}
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    with Journal(path, settings="epsilon 2") as journal:
        assert journal.finished(cases) == {"b", "c"}


def test_file_that_changes_while_it_is_processed_is_not_finished(path, cases, tmp_path):
    with Journal(path, settings="") as journal:
        journal.finished(cases)
        assert not journal.is_changed(cases[0])
        (tmp_path / "a.nii").write_text("changed before the function returned")
        assert journal.is_changed(cases[0])
        journal.put(cases[0], b"of the old or the new?")
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == set()


def killed_child(function):
    pid = os.fork()
    if pid == 0:
        function()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_process_keeps_what_was_committed_and_nothing_else(path, cases):
    def child():
        journal = Journal(path, settings="")
        journal.put(cases[0], b"1")
        journal.commit()
        journal.put(cases[1], b"2")

    killed_child(child)
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a"}


def test_killed_process_leaves_no_file_beside_the_journal_of_a_later_run_that_writes_nothing(path, cases):
    def child():
        journal = Journal(path, settings="")
        journal.put(cases[0], b"1")
        journal.commit()

    killed_child(child)
    assert len(list(path.parent.iterdir())) == 2
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a"}
    assert list(path.parent.iterdir()) == [path]
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a"}


def test_cases_are_committed_when_a_second_has_passed(path, cases, monkeypatch):
    def child():
        journal = Journal(path, settings="")
        journal.put(cases[0], b"1")
        now = module.time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now + 1)
        journal.put(cases[1], b"2")
        journal.put(cases[2], b"3")

    killed_child(child)
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a", "b"}


def test_error_in_a_run_keeps_its_finished_cases(path, cases):
    with pytest.raises(KeyboardInterrupt), Journal(path, settings="") as journal:
        journal.put(cases[0], b"1")
        raise KeyboardInterrupt
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a"}


def test_finished_cases_are_found_without_reading_payloads(path, cases):
    fill(path, cases)
    plan = sqlite3.connect(path).execute("EXPLAIN QUERY PLAN SELECT name, stamp FROM cases").fetchall()
    assert "COVERING INDEX stamps" in str(plan)


def test_file_is_locked_while_it_is_open(path, cases):
    with Journal(path, settings="") as journal:
        journal.put(cases[0], b"1")
        with pytest.raises(InputError, match=r"journal\.sqlite: is open in another program; close it there, or set"):
            Journal(path, settings="")
        journal.put(cases[1], b"2")
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a", "b"}


def test_second_process_is_refused_while_the_first_one_lives(path, cases):
    def child():
        try:
            Journal(path, settings="")
        except InputError:
            path.with_name("refused").touch()

    with Journal(path, settings=""):
        killed_child(child)
    assert path.with_name("refused").exists()


def test_file_system_without_locks_is_no_obstacle(path, cases, monkeypatch):
    """Network file systems may refuse locks, which SQLite takes for a locked file."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "lockf", no_locks)
    with Journal(path, settings="") as journal, Journal(path, settings=""):  # SQLite asks for no lock
        journal.put(cases[0], b"1")
    monkeypatch.undo()
    with Journal(path, settings="") as journal:
        assert journal.finished(cases) == {"a"}


def test_path_with_characters_of_addresses(tmp_path, cases):
    path = tmp_path / "50% of a?b#c\udcff" / "journal.sqlite"
    fill(path, cases)
    assert path.is_file()
    assert [entry.name for entry in path.parent.iterdir()] == ["journal.sqlite"]


def foreign(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cases (name)")


def other_version(path):
    Journal(path, settings="").close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")


def truncated(path):
    fill(path, [{"case": str(n), "image": str(n)} for n in range(200)])
    os.truncate(path, path.stat().st_size // 2)


def flipped(path):
    fill(path, [{"case": "a", "image": "x"}])
    path.write_bytes(path.read_bytes().replace(b"aaa", b"aab"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(b"not a database" * 100),
            "is damaged (file is not a database); delete it to process all cases again.",
        ),
        (truncated, "the journal of finished cases is damaged (database disk image is malformed); delete it"),
        (flipped, 'is damaged (checksum error in case "a"); delete it to process all cases again.'),
        (foreign, "is not a journal of this version; move the file away, or set another output folder."),
        (other_version, "is not a journal of this version"),
        (lambda path: path.mkdir(), "cannot be written (unable to open database file); free some space or set another"),
    ],
)
def test_file_that_is_not_a_journal_is_named_with_the_fix(path, damage, message):
    path.parent.mkdir()
    damage(path)
    with pytest.raises(InputError) as error, Journal(path, settings="epsilon 2") as journal:
        list(journal.payloads([{"case": "a", "image": "x"}, *({"case": str(n), "image": str(n)} for n in range(200))]))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_foreign_file_is_left_as_it_is(path):
    path.parent.mkdir()
    foreign(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is not a journal"):
        Journal(path, settings="")
    assert path.read_bytes() == before


def test_earlier_cases_are_named_with_path_and_settings(path, cases):
    fill(path, [cases[0], {**cases[1], "verdicts": "reject"}])
    with Journal(path, settings="other") as journal:
        assert journal.earlier() == {
            name: (case["image"], "epsilon 2") for name, case in zip("ab", cases, strict=False)
        }
