import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.inference.case_handler import (
    CaseHandler,
    case_name,
    decollated,
    gather_cases,
    grid_array,
    label_array,
    record_case,
    source_path,
)
from tests.conftest import ROOT


def item(file="/data/image.nii.gz", **keys):
    return {"image": MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": file}), **keys}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/data/img0001.nii.gz", "img0001"),
        ("/data/img0001.nii", "img0001"),
        ("/data/slice.dcm", "slice"),
        ("/data/series 7", "series 7"),
        ("/data/v1.2.nii.gz", "v1.2"),
    ],
)
def test_case_is_named_after_its_file(file, name):
    assert case_name(item(file)) == name


def test_case_of_the_datalist_comes_before_the_file_name():
    assert case_name(item(case="patient 3")) == "patient 3"


def test_case_without_name_and_file_is_refused():
    with pytest.raises(InputError, match='a case has neither "case" nor a file name: add "case"'):
        case_name({"image": torch.zeros(1)})


def test_source_is_the_file_of_the_image():
    assert source_path(item("/data/a.nii.gz")) == "/data/a.nii.gz"
    assert source_path({"image": torch.zeros(1)}) == source_path({}) == ""


def engine_with(batch, output):
    return types.SimpleNamespace(state=types.SimpleNamespace(batch=batch, output=output))


def test_cases_of_an_iteration_come_in_pairs():
    assert list(decollated(engine_with([{"case": "a"}], [{"pred": 1}]))) == [({"case": "a"}, {"pred": 1})]


def test_failed_case_gives_no_pair():
    assert list(decollated(engine_with([], []))) == []
    assert list(decollated(engine_with({"case": ["a"]}, []))) == []


@pytest.mark.parametrize(("batch", "output"), [({"image": 1}, {"pred": 1}), ([{}, {}], [{}]), ([{}], {"pred": 1})])
def test_undecollated_output_is_refused(batch, output):
    with pytest.raises(InputError, match=r"are not lists of the same cases: set decollate to true\."):
        list(decollated(engine_with(batch, output)))


def test_volume_keeps_its_affine_in_double_precision():
    affine = torch.diag(torch.tensor([0.1, 2, 3, 1], dtype=torch.float64))
    volume = grid_array(MetaTensor(torch.ones(1, 2, 3, 4), affine=affine), name="image")
    assert volume.grid.shape == (2, 3, 4)
    assert volume.affine.dtype == np.float64
    assert np.array_equal(volume.affine, affine.numpy())


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (None, 'p1: "pred" is NoneType, not an image with an affine: load it or correct the key.'),
        (torch.zeros(1, 2, 2, 2), 'p1: "pred" is Tensor, not an image with an affine: load it or correct the key.'),
        (MetaTensor(torch.zeros(2, 2, 2, 2)), 'p1: "pred" has shape (2, 2, 2, 2), need (1, X, Y, Z): reduce it to'),
        (MetaTensor(torch.zeros(2, 2, 2)), 'p1: "pred" has shape (2, 2, 2), need (1, X, Y, Z): reduce it to one'),
        (MetaTensor(torch.full((1, 2, 2, 2), 0.5)), 'p1: "pred" holds 0.5, not a class id: resample label maps with'),
    ],
    ids=["missing", "no affine", "two channels", "no channel", "fractions"],
)
def test_what_is_not_a_label_map_is_refused(volume, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        label_array({"pred": volume}, "pred", case="p1")


def test_case_seen_twice_is_recorded_once():
    records = {}
    for value in (1, 2):
        record_case(records, "a", source="/data/a", value=value)
    assert records == {"a": ("/data/a", 2)}


def test_two_files_of_one_case_name_are_refused():
    records = {}
    record_case(records, "a", source="/1/a", value=1)
    message = (
        '/1/a and /2/a are both named "a": one result would overwrite the other; '
        'add a distinct "case" to each item of the datalist.'
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        record_case(records, "a", source="/2/a", value=1)


def test_gathered_cases_of_one_process_are_sorted():
    own = {}
    for case in ("b", "a"):
        record_case(own, case, source=f"/data/{case}", value=1)
    assert list(gather_cases(own)) == ["a", "b"]


def test_handler_forgets_the_cases_of_the_epoch_before():
    class Recorder(CaseHandler):
        epochs = ()

        def __call__(self, engine):
            record_case(self._cases, f"c{engine.state.epoch}", source="/a", value=None)

        def _finish(self, engine):
            self.epochs += (list(self._cases),)

    handler, engine = Recorder(), Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([0], max_epochs=2)
    assert handler.epochs == (["c1"], ["c2"])


RANK = """
import sys, torch.distributed as dist
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import gather_cases
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
own = {"shared": ("/s", [0]), f"case{1 - rank}": (f"/{1 - rank}", [rank])}
print(is_rank0(), gather_cases(own))
dist.destroy_process_group()
"""


def test_ranks_share_their_cases_without_duplicates(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, env=environment, text=True
        )
        for rank in (0, 1)
    ]
    outputs = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    merged = "{'case0': ('/0', [1]), 'case1': ('/1', [0]), 'shared': ('/s', [0])}"
    assert outputs == [f"True {merged}", f"False {merged}"]
