import errno
import os
import types

import pytest
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.inference import case_handler
from scripts.inference.table_handler import LongTableHandler, TableHandler


class Sizes(TableHandler):
    def __init__(self, path):
        super().__init__(path, ["voxels", "ml"], decimals=2)

    def __call__(self, engine):
        case, voxels = engine.state.output
        self.add(case, {"voxels": voxels, "ml": voxels / 3, "more": 0}, source=f"/data/{case}")


def run(path, cases, *, keep_earlier=True, handler=None):
    engine = Engine(lambda engine, case: case)
    engine.keep_earlier = keep_earlier
    handler = handler or Sizes(path)
    handler.attach(engine)
    engine.run(cases)
    return handler


def test_rows_of_other_cases_are_kept_and_those_of_the_same_case_replaced(tmp_path):
    path = tmp_path / "sizes.csv"
    run(path, [("b", 1), ("a", 2)])
    run(path, [("b", 4), ("c", 5)])
    assert path.read_text() == "case,voxels,ml\na,2,0.67\nb,4,1.33\nc,5,1.67\n"


@pytest.mark.parametrize("keep_earlier", [False, None])
def test_rows_of_an_earlier_run_are_replaced_where_the_evaluator_does_not_keep_them(tmp_path, keep_earlier):
    path = tmp_path / "sizes.csv"
    path.write_text("whatever")
    run(path, [("b", 4)], keep_earlier=keep_earlier)
    assert path.read_text() == "case,voxels,ml\nb,4,1.33\n"


def test_run_without_finished_cases_leaves_the_head_or_the_earlier_rows(tmp_path):
    path = tmp_path / "sizes.csv"
    nothing = types.SimpleNamespace(state=types.SimpleNamespace(output=None))
    handler, engine = Sizes(path), Engine(lambda engine, case: nothing)
    engine.keep_earlier = True
    handler.event = Events.TERMINATE  # never
    handler.attach(engine)
    engine.run([0])
    assert path.read_text() == "case,voxels,ml\n"
    run(path, [("a", 1)])
    engine.run([0])
    assert path.read_text() == "case,voxels,ml\na,1,0.33\n"


def test_table_with_other_columns_is_refused_before_the_first_case_and_left_alone(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text("case,edema\na,1\n")
    with pytest.raises(InputError, match=r"sizes\.csv: its columns are not those of this run \(edema, voxels, ml\)"):
        run(path, [("b", 4)])
    assert path.read_text() == "case,edema\na,1\n"


def test_second_run_of_a_handler_keeps_what_the_first_wrote(tmp_path):
    handler = run(tmp_path / "sizes.csv", [("a", 1)])
    run(None, [("b", 2)], handler=handler)
    assert [line.split(",")[0] for line in (tmp_path / "sizes.csv").read_text().splitlines()] == ["case", "a", "b"]


def test_row_that_could_not_be_written_is_not_in_later_tables(tmp_path, monkeypatch):
    path, full = tmp_path / "sizes.csv", [False]
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: fsync(file) if not full[0] else _raise(errno.ENOSPC))
    handler = Sizes(path)
    run(None, [("a", 1)], handler=handler)
    full[0] = True
    with pytest.raises(InputError, match=r"sizes\.csv: cannot be written \(No space left on device\)"):
        handler.add("b", {"voxels": 2, "ml": 1.0}, source="/data/b")
    full[0] = False
    handler.add("c", {"voxels": 3, "ml": 1.0}, source="/data/c")
    assert path.read_text() == "case,voxels,ml\na,1,0.33\nc,3,1.00\n"
    assert [file.name for file in tmp_path.iterdir()] == ["sizes.csv"]


def _raise(number):
    raise OSError(number, os.strerror(number))


def test_rows_of_other_ranks_are_added_at_the_end(tmp_path, monkeypatch):
    merge = {"z": ("/data/z", {"voxels": 9, "ml": 9.0})}
    monkeypatch.setattr("scripts.inference.table_handler.gather_cases", lambda own: {**own, **merge})
    run(tmp_path / "sizes.csv", [("a", 1)])
    assert (tmp_path / "sizes.csv").read_text() == "case,voxels,ml\na,1,0.33\nz,9,9.00\n"
    assert case_handler.gather_cases({}) == {}


def test_other_ranks_neither_read_nor_write(tmp_path, monkeypatch):
    (tmp_path / "sizes.csv").write_text("whatever")
    monkeypatch.setattr("scripts.inference.table_handler.is_rank0", lambda: False)
    run(tmp_path / "sizes.csv", [("a", 1)])
    assert (tmp_path / "sizes.csv").read_text() == "whatever"


def test_no_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(None, [("a", 1)])
    assert list(tmp_path.iterdir()) == []


class Parts(LongTableHandler):
    def __init__(self, path):
        super().__init__(path, ["part", "ml"], decimals=1)

    def __call__(self, engine):
        case, sizes = engine.state.output
        rows = [{"part": str(n), "ml": size} for n, size in enumerate(sizes)]
        self.add(case, rows, source=f"/data/{case}")


def test_all_rows_of_a_case_replace_its_earlier_ones(tmp_path):
    path = tmp_path / "parts.csv"
    run(path, [("b", [1.0, 2.0, 3.0]), ("a", [4.0])], handler=Parts(path))
    run(path, [("b", [5.0, 6.0]), ("c", [])], handler=Parts(path))
    assert path.read_text() == "case,part,ml\na,0,4.0\nb,0,5.0\nb,1,6.0\n"
