import re

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.inference.volumes import VolumesSaver, organ_volumes

NAMES = {"0": "background", "1": "spleen", "2": "right kidney", "3": "aorta"}


def label_map(dtype=np.uint8):
    volume = np.zeros((8, 6, 5), dtype=dtype)
    volume[:2, :5, :5] = 1
    volume[4, :4, :4] = 2
    return volume


def run(cases, saver, *, before=()):
    """Run the handler on a stream of decollated (batch item, output item) pairs; None is a failed case."""

    def step(engine, pair):
        engine.state.batch = [] if pair is None else [pair[0]]
        engine.state.output = [] if pair is None else [pair[1]]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    for handler in before:
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, handler)
    saver.attach(engine)
    engine.run(cases, max_epochs=1)


def pair(case, *, volume=None, affine=None, source=None):
    volume = label_map() if volume is None else volume
    affine = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(affine)
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": source or f"/data/{case}.nii.gz"})
    return {"case": case, "image": image}, {"pred": MetaTensor(torch.from_numpy(volume)[None], affine=affine)}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, bool])
def test_volumes_are_counts_times_spacing(dtype, order):
    volume = np.asarray(label_map().astype(dtype), order=order)
    ml = organ_volumes(volume, spacing_mm=(2.0, 2.5, 4.0), class_names=NAMES)
    n_spleen, n_kidney = (66, 0) if dtype is bool else (50, 16)
    assert ml == pytest.approx({"spleen": n_spleen * 0.02, "right kidney": n_kidney * 0.02, "aorta": 0.0})


def test_tensor_and_array_agree():
    expected = organ_volumes(label_map(), spacing_mm=(1, 1, 1), class_names=NAMES)
    assert organ_volumes(torch.from_numpy(label_map()), spacing_mm=(1, 1, 1), class_names=NAMES) == expected


def test_empty_map_has_all_organs_at_zero():
    empty = np.zeros((3, 3, 3), dtype=np.uint8)
    ml = organ_volumes(empty, spacing_mm=(1, 1, 1), class_names=NAMES)
    assert ml == {"spleen": 0.0, "right kidney": 0.0, "aorta": 0.0}


@pytest.mark.parametrize(
    ("volume", "spacing_mm", "message"),
    [
        (label_map(), (1, -1, 1), "spacing_mm is (1, -1, 1): give voxel sizes above 0 mm."),
        (label_map(np.int8) - 1, (1, 1, 1), "the label map holds -1: class ids start at 0, renumber it."),
        (label_map() * 0.5, (1, 1, 1), "label_map holds 0.5, not a class id"),
    ],
)
def test_bad_input_is_refused(volume, spacing_mm, message):
    with pytest.raises(InputError, match=re.escape(message)):
        organ_volumes(volume, spacing_mm=spacing_mm, class_names=NAMES)


def test_table_has_a_row_per_case_and_a_column_per_organ(tmp_path):
    run([pair("b"), pair("a")], VolumesSaver(tmp_path, NAMES))
    assert (tmp_path / "volumes.csv").read_text() == (
        "case,spleen,right kidney,aorta\na,0.050,0.016,0.000\nb,0.050,0.016,0.000\n"
    )


def test_oblique_and_sheared_voxels_have_the_volume_of_their_determinant(tmp_path):
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[-2.0, 0, 0], [0, 2.5, 1.5], [0, 0, 4.0]])
    run([pair("tilted", affine=affine)], VolumesSaver(tmp_path, NAMES))
    assert pd.read_csv(tmp_path / "volumes.csv").loc[0, "spleen"] == pytest.approx(50 * 20 / 1000)


def test_killed_run_keeps_the_finished_cases(tmp_path):
    class Killed(Exception):
        pass

    def kill(engine):
        if engine.state.iteration == 3:
            raise Killed

    with pytest.raises(Killed):
        run([pair("a"), pair("b"), pair("c")], VolumesSaver(tmp_path, NAMES), before=[kill])
    assert pd.read_csv(tmp_path / "volumes.csv")["case"].tolist() == ["a", "b"]


def test_failed_case_has_no_row(tmp_path):
    run([pair("a"), None, pair("c")], VolumesSaver(tmp_path, NAMES))
    assert pd.read_csv(tmp_path / "volumes.csv")["case"].tolist() == ["a", "c"]


def test_other_ranks_do_not_write(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.inference.table_handler.is_rank0", lambda: False)
    run([pair("a")], VolumesSaver(tmp_path, NAMES))
    assert not list(tmp_path.iterdir())


def test_two_files_of_one_name_are_refused(tmp_path):
    cases = [pair("a", source="/data/1/a.nii.gz"), pair("a", source="/data/2/a.nii.gz")]
    with pytest.raises(InputError, match='both named "a"'):
        run(cases, VolumesSaver(tmp_path, NAMES))
