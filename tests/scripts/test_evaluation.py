import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from scripts.cases import case_name, decollated, gather_cases, remember
from scripts.evaluation import OrganScores, RegionScores
from scripts.lesions import LesionRules

NAMES = {"0": "background", "1": "spleen", "2": "liver"}
REGIONS = {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def oblique(spacing_mm=(2.0, 1.0, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag([-spacing_mm[0], spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = [10.0, -20.0, 30.0]
    return affine


def cube(start, value=1, shape=(16, 14, 12), side=5):
    volume = torch.zeros((1, *shape))
    volume[(0, *(slice(s, s + side) for s in start))] = value
    return volume


def item(pred, label, *, case=None, file="/data/image.nii.gz", affine=None):
    affine = torch.as_tensor(oblique() if affine is None else affine)
    entry = {
        "image": MetaTensor(pred.clone(), affine=affine, meta={"filename_or_obj": file}),
        "label": MetaTensor(label, affine=affine, meta={"filename_or_obj": file}),
        "pred": MetaTensor(pred, affine=affine),
    }
    return entry | ({"case": case} if case else {})


class Echo(torch.nn.Module):
    """A network that predicts what its input holds."""

    def forward(self, x):
        return x.clone()


def evaluate(items, handlers, *, max_epochs=1, edit=None):
    """Run a real MONAI evaluator whose prediction is its image."""
    items = [{k: v for k, v in entry.items() if k != "pred"} for entry in items]
    engine = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=1, num_workers=0),
        network=Echo(),
        postprocessing=edit,
    )
    for handler in handlers:
        handler.attach(engine)
    engine.state.max_epochs = max_epochs
    engine.run()
    return engine


def test_tables_and_metrics_of_a_run(tmp_path):
    label = cube((2, 2, 2)) + cube((9, 8, 5), value=2, side=4)
    shifted = cube((3, 2, 2)) + cube((9, 8, 5), value=2, side=4)
    items = [item(label, label, case="b"), item(shifted, label, case="a", file="/data/other.nii.gz")]
    engine = evaluate(items, [OrganScores(tmp_path, NAMES, tolerance_mm=1.0)])
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores.columns[:4]) == ["case", "organ", "class_id", "dice"]
    assert scores[["case", "organ"]].to_numpy().tolist() == [
        ["a", "spleen"],
        ["a", "liver"],
        ["b", "spleen"],
        ["b", "liver"],
    ]
    spleen = scores.iloc[0]
    assert spleen["dice"] == pytest.approx(0.8)
    assert spleen["hd95_mm"] == pytest.approx(2.0)  # one voxel of 2 mm along the oblique first axis
    assert spleen["volume_ml_label"] == pytest.approx(125 * 6 / 1000)
    summary = pd.read_csv(tmp_path / "summary.csv").set_index("organ")
    assert summary.loc["spleen", "mean_dice"] == pytest.approx(0.9)
    assert summary.loc["mean", "mean_dice"] == pytest.approx(0.95)
    assert engine.state.metrics["mean_dice"] == pytest.approx(0.95)
    assert engine.state.metrics["mean_hd95_mm"] == pytest.approx(0.5)
    assert {"mean_asd_mm", "mean_surface_dice"} <= engine.state.metrics.keys()


def test_no_temporary_file_stays(tmp_path):
    label = cube((2, 2, 2))
    evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "summary.csv"]


def test_summary_is_logged(tmp_path, caplog):
    label = cube((2, 2, 2))
    with caplog.at_level("INFO", logger="scripts.evaluation"):
        evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)])
    assert "spleen" in caplog.text
    assert "1 cases scored" in caplog.text


def test_each_epoch_starts_anew(tmp_path):
    label = cube((2, 2, 2))
    evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)], max_epochs=2)
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 1


def test_same_case_twice_counts_once(tmp_path):
    label = cube((2, 2, 2))
    evaluate([item(label, label, case="a")] * 2, [OrganScores(tmp_path, NAMES)])
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 1


def test_failed_case_is_left_out(tmp_path):
    label = cube((2, 2, 2))

    class Fail:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine):
            engine.state.batch, engine.state.output = [], []

    engine = evaluate([item(label, label)], [Fail(), OrganScores(tmp_path, NAMES)])
    assert (tmp_path / "scores.csv").read_text().startswith("case,organ,class_id,dice,hd95_mm,asd_mm,")
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 0
    assert np.isnan(engine.state.metrics["mean_dice"])


def tumour(*, enhancing=True):
    """Edema of 6 x 6 x 6 around a core of 4 x 4 x 4, of which half enhances."""
    volume = cube((2, 2, 2), value=2, side=6)
    volume[:, 3:7, 3:7, 3:7] = 1
    if enhancing:
        volume[:, 3:7, 3:7, 5:7] = 3
    return volume


def test_regions_and_lesions_of_a_run(tmp_path):
    label = tumour()
    missed = label + cube((11, 9, 7), value=2, side=4)
    items = [
        item(label, missed, case="b"),
        item(tumour(enhancing=False), label, case="a", file="/data/other.nii.gz"),
    ]
    engine = evaluate(items, [RegionScores(tmp_path, REGIONS, rules=LesionRules(dilation=1))])
    scores = pd.read_csv(tmp_path / "scores.csv").set_index(["case", "region"])
    assert list(scores.index) == [(case, region) for case in "ab" for region in REGIONS]
    whole = scores.loc[("b", "WT")]
    assert whole["dice"] == pytest.approx(2 * 216 / (216 + 280), abs=1e-6)
    assert (whole["lesion_dice"], whole["lesion_hd95_mm"]) == (0.5, 187.0)
    assert whole[["lesions", "missed", "spurious"]].tolist() == [2, 1, 0]
    assert whole["volume_ml_label"] == pytest.approx(280 * 6 / 1000)
    lost = scores.loc[("a", "ET")]
    assert (lost["dice"], lost["hd95_mm"], lost["lesion_dice"], lost["missed"]) == (0, 374, 0, 1)
    summary = pd.read_csv(tmp_path / "summary.csv").set_index("region")
    assert summary.loc["ET", ["mean_dice", "mean_hd95_mm", "lesions", "missed"]].tolist() == [0.5, 187, 2, 1]
    assert list(summary.index) == [*REGIONS, "mean"]
    for name in ("mean_dice", "mean_hd95_mm", "mean_lesion_dice", "mean_lesion_hd95_mm"):
        assert engine.state.metrics[name] == pytest.approx(summary.loc["mean", name], abs=1e-6), name
    assert engine.state.metrics["mean_lesion_dice"] == pytest.approx((1 + 0.75 + 0.5) / 3)


def test_regions_of_no_case_have_no_mean(tmp_path):
    class Fail:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine):
            engine.state.batch, engine.state.output = [], []

    engine = evaluate([item(tumour(), tumour())], [Fail(), RegionScores(tmp_path, REGIONS)])
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 0
    assert np.isnan(engine.state.metrics["mean_lesion_dice"])


def test_older_numbering_is_refused_with_the_case(tmp_path):
    older = torch.where(tumour() == 3, 4, tumour())
    message = "^p1: pred holds the classes \\[4\\], which regions lacks: name or remap them."
    with pytest.raises(ValueError, match=message):
        evaluate([item(older, tumour(), case="p1")], [RegionScores(tmp_path, REGIONS)])


@pytest.mark.parametrize("regions", [{}, {"WT": []}, {"WT": [0, 1]}])
def test_impossible_regions_are_refused(tmp_path, regions):
    message = f"^{re.escape(f'regions is {regions}')}: give each region its class ids, 1 or more."
    with pytest.raises(ValueError, match=message):
        RegionScores(tmp_path, regions)


def crop_pred(data):
    return {**data, "pred": data["pred"][:, 1:]}


def drop_label(data):
    return {**data, "label": None}


def shift_label(data):
    label = data["label"].clone()
    label.affine[0, 3] += 0.5
    return {**data, "label": label}


def two_channels(data):
    return {**data, "pred": torch.cat([data["pred"]] * 2)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            crop_pred,
            "p1: the prediction has shape (15, 14, 12) but the label (16, 14, 12): keep the label as it",
        ),
        (drop_label, 'p1: "label" is NoneType, not an image with an affine: load it or correct the key.'),
        (shift_label, "p1: prediction and label lie differently in the patient, their affines are [["),
        (two_channels, 'p1: "pred" has shape (2, 16, 14, 12), not (1, X, Y, Z): reduce it to a channel.'),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, edit, message):
    label = cube((2, 2, 2))
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate([item(label, label, case="p1")], [OrganScores(tmp_path, NAMES)], edit=edit)


def test_two_files_of_one_name_are_refused(tmp_path):
    label = cube((2, 2, 2))
    items = [item(label, label, file=f"/data/{p}/image.nii.gz") for p in ("p1", "p2")]
    with pytest.raises(ValueError, match=r'both named "image".*add a distinct "case"'):
        evaluate(items, [OrganScores(tmp_path, NAMES)])


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
    assert case_name(item(cube((1, 1, 1)), cube((1, 1, 1)), file=file)) == name


def test_case_of_the_datalist_wins():
    assert case_name(item(cube((1, 1, 1)), cube((1, 1, 1)), case="patient 3")) == "patient 3"


def test_case_without_name_and_file_is_refused():
    with pytest.raises(ValueError, match='neither "case" nor a file name'):
        case_name({"image": torch.zeros(1)})


def test_undecollated_output_is_refused():
    class FakeEngine:
        class state:
            batch, output = {"image": 1}, {"pred": 1}

    with pytest.raises(ValueError, match="set decollate to true"):
        list(decollated(FakeEngine))


def test_gather_without_processes_sorts():
    own = {}
    for case in ("b", "a"):
        remember(own, case, source=f"/data/{case}", value=1)
    assert list(gather_cases(own)) == ["a", "b"]


RANK = """
import sys, torch.distributed as dist
from scripts.cases import gather_cases, is_rank0
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
own = {"shared": ("/s", [0]), f"case{1 - rank}": (f"/{1 - rank}", [rank])}
print(is_rank0(), gather_cases(own))
dist.destroy_process_group()
"""


def test_ranks_share_their_cases_without_duplicates(tmp_path):
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
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
