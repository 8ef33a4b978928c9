import json
import re

import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.models.weights import load_weights
from scripts.solf.filter import LabelFilter
from scripts.solf.thresholds import INPUTS
from scripts.solf.training import FilterTrainer, read_features

RULE = {"rule": "percentile", "epsilon_percent": 10.0}


@pytest.fixture
def trainer(tmp_path):
    def make(dataset, **options):
        given = {"rule": RULE, "qc": False, "workers": 0, "output_dir": tmp_path / "fit", **options}
        return FilterTrainer(network=LabelFilter(), dataset=dataset, ckpt_path=tmp_path / "model.pt", **given)

    return make


def test_decisions_are_derived_once_for_the_report_and_not_without_it(cohort_dataset, trainer, tmp_path, judged):
    trainer(cohort_dataset(10)).run()
    assert len(judged) == 0
    trainer(cohort_dataset(10), qc=True).run()
    assert len(judged) == 3  # ten cases in tables of four
    decisions = pd.read_parquet(tmp_path / "fit" / "decisions.parquet")
    features = pd.read_parquet(tmp_path / "fit" / "features.parquet")
    assert decisions[["case", "label", "sphericity"]].equals(features[["case", "label", "sphericity"]])


def test_another_rule_measures_nothing_again(cohort_dataset, trainer, tmp_path, measured):
    trainer(cohort_dataset(10)).run()
    before = json.loads((tmp_path / "fit" / "thresholds.json").read_text())
    trainer(cohort_dataset(10), rule={**RULE, "epsilon_percent": 20.0}).run()
    assert len(measured) == 10
    assert json.loads((tmp_path / "fit" / "thresholds.json").read_text())["organs"] != before["organs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": {"epsilon_percent": 2.0}}, "dataset has 10 label maps, the rule percentile needs 50: give more, a"),
        ({"rule": {"rule": "sigma"}}, "rule is 'sigma': give one of percentile, iqr, mad, deciles, ranges"),
        ({"rule": {**RULE, "votes": 9}}, "votes is 9, above the 3 of features: give 3 or less"),
        ({"max_epochs": 7}, "max_epochs is 7: a cohort is measured once, leave it at 1."),
        ({"qc": "maybe"}, "qc is 'maybe': give true or false."),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(cohort_dataset, trainer, measured, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        trainer(cohort_dataset(10), **options)
    assert not measured


def test_features_are_read_as_they_were_written(cohort_dataset, trainer, tmp_path):
    trainer(cohort_dataset(10)).run()
    path = tmp_path / "fit" / "features.parquet"
    read, written = read_features(path), pd.read_parquet(path)
    assert list(read) == list(INPUTS)
    for name in INPUTS:
        assert read[name].astype(written[name].dtype).equals(written[name]), name


def test_fit_with_covariates_does_not_measure_again(cohort_dataset, trainer, covariates, tmp_path, measured, caplog):
    rule = {"rule": "mad", "features": ["sphericity"], "votes": 1}
    trainer(cohort_dataset(30), rule=rule).run()
    trainer(cohort_dataset(30), rule=rule, covariates=covariates).run()
    assert len(measured) == 30
    content = json.loads((tmp_path / "fit" / "thresholds.json").read_text())
    assert content["covariates"]["columns_of_coefficients"] == ["constant", "age"]
    assert any(content["organs"]["2"]["sphericity"]["coefficients"])
    network = LabelFilter()
    load_weights(network, tmp_path / "model.pt")
    assert network.thresholds.fingerprint == content["fingerprint"]
    assert "covariates: 1 of 30 cases are judged by the thresholds without covariates: s03 (no row)" in caplog.text


def test_fixed_ranges_take_no_covariates(cohort_dataset, trainer, covariates, measured):
    with pytest.raises(InputError, match="the fixed ranges of the rule ranges take no covariates: choose another rule"):
        trainer(cohort_dataset(10), rule={"rule": "ranges"}, covariates=covariates)
    assert not measured
