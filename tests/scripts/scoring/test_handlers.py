import re

import numpy as np
import pandas as pd
import pytest
import torch

from scripts.common.errors import InputError
from scripts.scoring.handlers import OrganScores
from tests.scripts.scoring.evaluated_cases import FailedCase, cube, evaluate, item, oblique

NAMES = {"0": "background", "1": "spleen", "2": "liver"}


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


def test_no_temporary_file_is_left(tmp_path):
    label = cube((2, 2, 2))
    evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "summary.csv"]


def test_summary_is_logged(tmp_path, caplog):
    label = cube((2, 2, 2))
    with caplog.at_level("INFO", logger="scripts.scoring.handlers"):
        evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)])
    assert "spleen" in caplog.text
    assert f"scored 1 case, wrote tables to {tmp_path}\n" in caplog.text


def test_each_epoch_replaces_the_scores_of_the_one_before(tmp_path):
    label = cube((2, 2, 2))
    evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)], max_epochs=2)
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 1


def test_same_case_twice_counts_once(tmp_path):
    label = cube((2, 2, 2))
    evaluate([item(label, label, case="a")] * 2, [OrganScores(tmp_path, NAMES)])
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 1


def test_failed_case_is_left_out(tmp_path):
    label = cube((2, 2, 2))
    engine = evaluate([item(label, label)], [FailedCase(), OrganScores(tmp_path, NAMES)])
    assert (tmp_path / "scores.csv").read_text().startswith("case,organ,class_id,dice,hd95_mm,asd_mm,")
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 0
    assert np.isnan(engine.state.metrics["mean_dice"])


def crop_pred(data):
    return {**data, "pred": data["pred"][:, 1:]}


def drop_label(data):
    return {**data, "label": None}


def shift_label(data):
    label = data["label"].clone()
    label.affine[0, 3] += 0.5
    return {**data, "label": label}


def shift_label_by_rounding(data):
    label = data["label"].clone()
    label.affine[0, 3] += 0.05
    return {**data, "label": label}


def resize_label_voxels(data):
    """Keep the first corner in place and move the last one."""
    label = data["label"].clone()
    label.affine = torch.as_tensor(oblique((0.70, 0.70, 3.0)))
    return {**data, "label": label}


def two_channels(data):
    return {**data, "pred": torch.cat([data["pred"]] * 2)}


NOT_SCORED = "segmented, but not scored: p1"
OTHER_GRID = f"{NOT_SCORED}: the label does not lie on the grid of the prediction: "


@pytest.mark.parametrize(
    ("edit", "spacing_mm", "message"),
    [
        (crop_pred, (2, 1, 3), f"{OTHER_GRID}shape 16 x 14 x 12 instead of 15 x 14 x 12, centre 1.0 mm away."),
        (shift_label, (2, 1, 3), f"{OTHER_GRID}centre 0.5 mm away."),
        (
            resize_label_voxels,
            (0.78, 0.78, 3),
            f"{OTHER_GRID}spacing 0.7 x 0.7 x 3 instead of 0.78 x 0.78 x 3 mm, centre 0.8 mm away.",
        ),
        (
            drop_label,
            (2, 1, 3),
            f'{NOT_SCORED}: "label" is NoneType, not an image with an affine: load it or correct the',
        ),
        (two_channels, (2, 1, 3), f'{NOT_SCORED}: "pred" has shape (2, 16, 14, 12), need (1, X, Y, Z): reduce it to'),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, edit, spacing_mm, message):
    label = cube((2, 2, 2))
    case = item(label, label, case="p1", affine=oblique(spacing_mm))
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        evaluate([case], [OrganScores(tmp_path, NAMES)], edit=edit)


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path):
    label = cube((2, 2, 2))
    engine = evaluate([item(label, label)], [OrganScores(tmp_path, NAMES)], edit=shift_label_by_rounding)
    assert engine.state.metrics["mean_dice"] == 1.0


def test_class_without_a_name_is_refused_with_the_case(tmp_path):
    label = cube((2, 2, 2))
    message = f"{NOT_SCORED}: pred holds the classes [7], which class_names lacks: name or remap them."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        evaluate([item(label * 7, label, case="p1")], [OrganScores(tmp_path, NAMES)])


def test_prediction_without_foreground_is_warned_about_and_scored(tmp_path, caplog):
    label = cube((2, 2, 2))
    evaluate([item(0 * label, label, case="p1")], [OrganScores(tmp_path, NAMES)])
    assert "p1: the prediction is all background" in caplog.messages
    assert pd.read_csv(tmp_path / "scores.csv")["dice"].tolist() == [0]
    assert pd.read_csv(tmp_path / "summary.csv")["n_missed"].tolist() == [1, 1]


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), "2", None])
def test_impossible_tolerance_is_refused_before_the_first_case(tmp_path, tolerance):
    message = re.escape(f"tolerance_mm is {tolerance!r}: give a finite tolerance of 0 mm or more.")
    with pytest.raises(InputError, match=f"^{message}$"):
        OrganScores(tmp_path, NAMES, tolerance_mm=tolerance)


def test_two_files_of_one_name_are_refused(tmp_path):
    label = cube((2, 2, 2))
    items = [item(label, label, file=f"/data/{p}/image.nii.gz") for p in ("p1", "p2")]
    with pytest.raises(InputError, match=r'both named "image".*add a distinct "case"'):
        evaluate(items, [OrganScores(tmp_path, NAMES)])
