import re

import numpy as np
import pandas as pd
import pytest
import torch

from scripts.brats.lesions import LesionRules
from scripts.brats.scores import RegionScores
from scripts.common.errors import InputError
from tests.scripts.scoring.evaluated_cases import FailedCase, cube, evaluate, item

REGIONS = {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}


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
    engine = evaluate([item(tumour(), tumour())], [FailedCase(), RegionScores(tmp_path, REGIONS)])
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 0
    assert np.isnan(engine.state.metrics["mean_lesion_dice"])


def test_older_numbering_is_refused_with_the_case(tmp_path):
    older = torch.where(tumour() == 3, 4, tumour())
    message = "segmented, but not scored: p1: pred holds the classes [4], which regions lacks: name or remap them."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        evaluate([item(older, tumour(), case="p1")], [RegionScores(tmp_path, REGIONS)])


@pytest.mark.parametrize("regions", [{}, {"WT": []}, {"WT": [0, 1]}])
def test_impossible_regions_are_refused(tmp_path, regions):
    message = f"regions is {regions}: give each region its class ids, 1 or more."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        RegionScores(tmp_path, regions)
