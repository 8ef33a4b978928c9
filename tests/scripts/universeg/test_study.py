import pandas as pd
import pytest
import torch

from scripts.common.errors import InputError
from scripts.models.universeg import UniverSeg
from scripts.universeg.study import COLUMNS, SupportStudy, mask_dice, summarise
from scripts.universeg.support import SupportSet
from tests.scripts.universeg.support_files import transform, write_pictures, write_volume


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save(UniverSeg(features=[4, 4]).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def study_of(folder, weights, **options):
    options = {"support_sizes": (1, 2, 9), "ensemble_sizes": (1, 2), "output_dir": folder.parent / "out", **options}
    support = SupportSet(folder, transform())
    return SupportStudy(support=support, network=UniverSeg(features=[4, 4]), ckpt_path=weights, **options)


def test_scores_are_those_of_each_target_with_support_of_others(tmp_path, weights):
    study = study_of(write_pictures(tmp_path / "in", n=4), weights)
    summary = study.run()
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert tuple(scores.columns) == COLUMNS
    assert len(scores) == 4 * 2 * 2 * 2  # targets, classes, sizes, ensembles
    assert set(scores["support_size"]) == {1, 2}  # there are no nine
    assert scores["dice"].between(0, 1).all()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scores.csv",
        "summary.csv",
        "support_size.png",
    ]
    assert summary[summary["class"] == "mean"]["n"].tolist() == [8] * 4


def test_dice_is_that_of_the_network(tmp_path, weights):
    study = study_of(
        write_pictures(tmp_path / "in", n=3, classes=(1,)), weights, support_sizes=(2,), ensemble_sizes=(1,)
    )
    study.run()
    scores = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("case")
    slices = study.support.slices
    images, masks = study.support.tensors([0, 2], 1)
    with torch.no_grad():
        logits = study.network(slices[1].image[None, None], images, masks)[0, 0]
    assert scores.loc["p1", "dice"] == pytest.approx(mask_dice(logits > 0, slices[1].label > 0), abs=1e-6)


def test_slices_of_the_same_image_support_a_target_only_if_wanted(tmp_path, weights):
    write_volume(tmp_path / "in", labelled=(0, 1, 2), name="a")
    write_volume(tmp_path / "in", labelled=(0, 1), name="b")
    for leave_out, sizes in {"auto": [3, 2], "case": [3, 2], "slice": [4, 4]}.items():
        study = study_of(tmp_path / "in", weights, leave_out=leave_out)
        pools = {study.support.slices[target].case: len(pool) for _, target, pool in study._targets()}
        assert [pools["b"], pools["a"]] == sizes, leave_out


def test_targets_are_drawn_if_there_are_many(tmp_path, weights):
    study = study_of(write_pictures(tmp_path / "in", n=6, classes=(1,)), weights, max_targets=2)
    assert len(list(study._targets())) == 2


def test_mean_is_of_classes_with_all_sizes():
    rows = [("a", 0, "common", size, 1, 0.5) for size in (1, 2)] + [("a", 0, "rare", 1, 1, 1.0)]
    means = summarise(pd.DataFrame(rows, columns=COLUMNS)).query("`class` == 'mean'")
    assert means["dice"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_out": "none"}, "leave_out is 'none': give one of auto, case, slice"),
        ({"support_sizes": []}, "give numbers from 1"),
        ({"max_targets": 0}, "give numbers from 1"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, weights, options, message):
    with pytest.raises(InputError, match=message):
        study_of(tmp_path / "in", weights, **options)


def test_one_labelled_slice_is_too_few(tmp_path, weights):
    with pytest.raises(InputError, match="too few labelled slices; give at least two that show the same class"):
        study_of(write_pictures(tmp_path / "in", n=1), weights).run()
