from contextlib import contextmanager

import pytest
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from scripts.inference.run_guard import RunGuard, surround_run


def engine_that(step=lambda engine, batch: None):
    return Engine(step)


@pytest.mark.parametrize("stop", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_context_surrounds_the_run_however_it_ends(stop):
    seen = []

    @contextmanager
    def context():
        seen.append("open")
        try:
            yield
        finally:
            seen.append("closed")

    def step(engine, batch):
        seen.append(batch)
        if stop:
            raise stop

    engine = engine_that(step)
    surround_run(engine, context)
    engine.add_event_handler(Events.STARTED, lambda: seen.append("started"))
    if stop:
        with pytest.raises(stop):
            engine.run([1])
    else:
        assert engine.run([1]).iteration == 1
    assert seen == ["open", "started", 1, "closed"]


def test_folder_is_locked_during_each_run_and_created_before_its_first_event(tmp_path):
    engine, guard = engine_that(), RunGuard(tmp_path / "models", setting="ckpt_dir")
    guard.attach(engine)

    @engine.on(Events.STARTED)
    def write(engine):
        with (
            pytest.raises(InputError, match=r"another run .* set another ckpt_dir"),
            FolderLock(tmp_path / "models", setting="ckpt_dir"),
        ):
            pass
        (tmp_path / "models" / "training_state.ckpt").touch()

    for _ in range(2):
        engine.run([1])
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["training_state.ckpt"]


def test_refused_run_fires_no_event_and_leaves_no_folder(tmp_path):
    engine = engine_that()
    RunGuard(tmp_path / "models", setting="ckpt_dir").attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: (_ for _ in ()).throw(InputError("no checkpoint")))
    with pytest.raises(InputError, match="no checkpoint"):
        engine.run([1])
    assert not (tmp_path / "models").exists()
    (tmp_path / "models").mkdir()
    with FolderLock(tmp_path / "models"), pytest.raises(InputError, match="another run is using this folder"):
        engine.run([1])


def test_other_ranks_do_not_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.inference.run_guard.is_rank0", lambda: False)
    engine = engine_that()
    RunGuard(tmp_path, setting="ckpt_dir").attach(engine)
    with FolderLock(tmp_path):
        assert engine.run([1]).iteration == 1
