import logging
import os
import re

import nibabel as nib
import pandas as pd
import pytest
import torch
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.solf.filter import LabelFilter
from scripts.solf.fixing import FixLabelsd, add_fixed
from scripts.solf.thresholds import SHAPE
from scripts.solf.transforms import LoadLabelMapd, ShapeFeaturesd
from scripts.solf.tuned_training import TunedTrainer
from scripts.solf.verdicts import read_verdicts
from tests.scripts.solf.conftest import AFFINE, small_map

RULE = {"rule": "percentile", "features": list(SHAPE), "votes": 2, "epsilon_percent": 10.0}
SETTINGS = {
    "rule": RULE,
    "feature_sets": [SHAPE, [*SHAPE, "components"]],
    "factors": {"mad": [3.0, 5.0]},
    "max_false_rejections": 0.05,
    "folds": 2,
}
WRONG = [("s05", 2), ("s06", 3), ("s06", 66), *((f"s{n:02d}", 2) for n in (1, 7, 8, 11, 12))]


@pytest.fixture
def errors_file(tmp_path):
    """Write a list of known errors."""

    def write(rows=WRONG):
        path = tmp_path / f"errors{len(rows)}.csv"
        pd.DataFrame(rows, columns=["case", "label"]).to_csv(path, index=False)
        return path

    return write


@pytest.fixture
def verdicts(tmp_path):
    """Verdicts about all labels of the first cases."""

    def make(cases, wrong=WRONG):
        rows = [
            (f"s{n:02d}", label, "reject" if (f"s{n:02d}", label) in wrong else "accept")
            for n in range(cases)
            for label in (2, 3, 66)
        ]
        table = pd.DataFrame(rows, columns=["case", "label", "verdict"])
        table.assign(reviewer="alice", reviewed_at="2026-11-21T20:15:00Z").to_csv(tmp_path / "v.csv", index=False)
        return read_verdicts(tmp_path / "v.csv")

    return make


@pytest.fixture
def trainer(tmp_path):
    def make(dataset, **options):
        given = {"qc": False, "workers": 0, "output_dir": tmp_path / "fit", "verdicts": None, **SETTINGS, **options}
        return TunedTrainer(network=LabelFilter(), dataset=dataset, ckpt_path=tmp_path / "model.pt", **given)

    return make


@pytest.mark.parametrize("source", ["known_errors", "verdicts"])
def test_best_candidate_is_fitted_to_the_whole_cohort(
    cohort_dataset, trainer, errors_file, verdicts, tmp_path, caplog, source
):
    given = {"known_errors": errors_file()} if source == "known_errors" else {"verdicts": verdicts(20)}
    run = trainer(cohort_dataset(42), **given)
    with caplog.at_level(logging.INFO):
        run.run()
    table = pd.read_csv(tmp_path / "fit" / "tuning.csv")
    assert len(table) == 1 + 2 * (3 + 3)
    assert table["current"].tolist() == [True] + [False] * 12
    assert table["chosen"].sum() == 1
    chosen = table[table["chosen"]].iloc[0]
    assert chosen["f1"] == table.loc[table["false_rejections"] <= 0.05, "f1"].max() > 0
    fitted = run.network.thresholds
    assert fitted.features == [name for name in [*SHAPE, "components"] if name in chosen["features"].split()]
    assert fitted.votes == chosen["votes"]
    assert fitted.subjects.max() == 42
    assert torch.load(tmp_path / "model.pt", weights_only=True)["votes"] == chosen["votes"]
    assert f"chose of 13 rules, {chosen['rule']} {chosen['factor']:g}, {chosen['votes']} of " in caplog.text
    assert (
        "the rule of the settings: percentile 10, 2 of normalized_volume, sphericity, eccentricity: F1" in caplog.text
    )


def test_labels_that_cases_lack_are_named_and_left_out_and_nothing_is_measured_twice(
    cohort_dataset, trainer, errors_file, verdicts, measured, caplog
):
    trainer(cohort_dataset(42), known_errors=errors_file([*WRONG, ("s01", 5)])).run()
    assert "known_errors: 1 are of labels that their cases lack, which no rule can reject" in caplog.text
    table = verdicts(20)
    trainer(cohort_dataset(42), verdicts=pd.concat([table, table[:1].assign(label=5, organ="liver")])).run()
    assert "verdicts: 1 are about labels that their cases lack: s00 liver" in caplog.text
    assert len(measured) == 42


def test_table_is_written_even_if_all_rules_reject_too_much(cohort_dataset, trainer, errors_file, tmp_path):
    with pytest.raises(InputError, match=r"max_false_rejections is 0\.05: all 1 rules reject more of the right labels"):
        trainer(
            cohort_dataset(42), known_errors=errors_file(), factors={}, rule={**RULE, "epsilon_percent": 40.0}
        ).run()
    assert len(pd.read_csv(tmp_path / "fit" / "tuning.csv")) == 1
    assert not (tmp_path / "model.pt").exists()


def test_bad_settings_and_too_few_verdicts_are_refused_before_anything_is_measured(
    cohort_dataset, trainer, errors_file, verdicts, measured
):
    dataset = cohort_dataset(10)
    for options, message in (
        ({}, "tuning needs labels that people judged: set either verdicts or known_errors."),
        ({"verdicts": verdicts(3), "known_errors": errors_file()}, "set either verdicts or known_errors."),
        ({"verdicts": verdicts(5)}, "too few labels to choose a rule by: 1 wrong labels in 1 cases and 14 right ones;"),
        (
            {"known_errors": errors_file(WRONG[:3])},
            "too few labels to choose a rule by: 3 wrong labels in 2 cases; 2 f",
        ),
        ({"known_errors": errors_file([("x", 2)])}, "known_errors: none of its cases, such as 'x', is one of the 10"),
        ({"folds": 1}, "folds is 1: give a whole number from 2 to 20"),
        ({"max_false_rejections": 0}, "max_false_rejections is 0: give a number above 0 to 1"),
        ({"seed": -1}, "seed is -1: give a whole number from 0"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            trainer(dataset, **options)
    assert not measured


def test_verdict_that_is_older_than_a_fix_is_not_tuned_by(cohort_dataset, trainer, verdicts, tmp_path, caplog):
    """The whole right kidney of s05 is given back; that half of it was missing is no error any more."""
    dataset, given = cohort_dataset(42), verdicts(20, [*WRONG, ("s14", 2)])
    (tmp_path / "fixed").mkdir()
    nib.save(nib.Nifti1Image(small_map(5), AFFINE), tmp_path / "fixed" / "s05.nii.gz")
    time = pd.Timestamp("2026-11-21T20:15:01Z").timestamp()
    os.utime(tmp_path / "fixed" / "s05.nii.gz", (time, time))
    dataset.data = add_fixed(dataset.data, tmp_path / "fixed")
    dataset.transform = Compose([LoadLabelMapd("image"), FixLabelsd("image"), ShapeFeaturesd("image")])
    run = trainer(dataset, verdicts=given)
    run.run()
    judged = run._truth(pd.read_parquet(tmp_path / "fit" / "features.parquet")).set_index(["case", "label"])
    assert set(run.judged[["case", "label"]].itertuples(index=False, name=None)) - {*judged.index} == {
        ("s05", 2),
        ("s05", 66),
    }
    assert "review them again: s05 kidney_right, s05 muscle" in caplog.text


def test_tuning_takes_no_covariates(cohort_dataset, trainer, errors_file, covariates):
    with pytest.raises(InputError, match="tuning compares rules without covariates: leave covariates empty, and fit"):
        trainer(cohort_dataset(30), known_errors=errors_file(), covariates=covariates)
