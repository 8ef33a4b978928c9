import base64
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from scripts.solf.covariates import Covariates, learn_coding
from scripts.solf.fitting import fit_thresholds
from scripts.solf.report.drift import COLUMNS, described, measure_drift
from scripts.solf.thresholds import judge

ORGANS = {1: "spleen", 2: "kidney_right", 3: "kidney_left", 5: "liver", 6: "stomach"}
FEATURES = ["volume_mm3", "sphericity"]


def cohort(*, shift=0.0, count=240, seed=0):
    """Draw people of two sites and twelve months; livers of site B are larger by `shift` of their spread."""
    rng, records, rows = np.random.default_rng(seed), [], {}
    for n in range(count):
        rows[f"p{n:03d}"] = {"site": "AB"[n % 3 == 0], "date": f"2026-{1 + n // 20:02d}-05"}
        for label in ORGANS:
            volume = np.exp(12 + 0.1 * rng.normal() + 0.1 * shift * (label == 5 and n % 3 == 0))
            record = {"case": f"p{n:03d}", "label": label, "volume_mm3": volume, "sphericity": rng.normal(0.6, 0.02)}
            records.append(record)
    return pd.DataFrame(records), Covariates("", rows, learn_coding(list(rows.values()), ["site"]))


def drift_of(table, covariates, *, norms=None):
    rule = {"rule": "deciles", "features": FEATURES, "votes": 1}
    fitted = fit_thresholds(table, organs=ORGANS, covariates=norms, **rule)
    decided = judge(table, fitted, norms and norms.rows)
    chunks = [decided[decided["case"] < "p100"], decided[decided["case"] >= "p100"]]
    return measure_drift(chunks, fitted, covariates)


@pytest.mark.parametrize("is_adjusted", [False, True])
def test_drift_is_in_spreads_and_shows_although_site_is_a_covariate(is_adjusted):
    table, covariates = cohort(shift=1.5)
    drift = drift_of(table, covariates, norms=covariates if is_adjusted else None)
    assert list(drift) == list(COLUMNS)
    beyond = drift[drift["difference"].abs() > drift["chance"]]
    assert set(zip(beyond["organ"], beyond["feature"], strict=True)) == {("liver", "volume_mm3")}
    sites = drift[(drift["kind"] == "site") & (drift["organ"] == "liver") & (drift["feature"] == "volume_mm3")]
    difference = sites.set_index("group")["difference"]
    spread = np.sqrt(1 + 1.5**2 * 2 / 9)  # of the mixture
    assert difference["B"] - difference["A"] == pytest.approx(1.5 / spread, rel=0.25)


def test_sites_and_months_that_differ_by_chance_are_not_named():
    drift = drift_of(*cohort())
    assert (drift["difference"].abs() <= drift["chance"]).all()
    assert drift.groupby("kind")["group"].nunique().to_dict() == {"month": 12, "site": 2}
    assert len(drift) == 14 * 5 * 2
    shown = described(drift)
    assert (shown["largest"], shown["beyond"], shown["all"]) == ([], 0, 140)


def test_largest_differences_are_named_and_drawn(tmp_path):
    shown = described(drift_of(*cohort(shift=3)))
    assert shown["largest"][0].startswith("site B: liver, volume_mm3: +1.")
    assert "(80 people; chance alone: up to 0." in shown["largest"][0]
    head, code = shown["picture"].split(",")
    assert head == "data:image/png;base64"
    (tmp_path / "drift.png").write_bytes(base64.b64decode(code))
    colours = np.asarray(Image.open(tmp_path / "drift.png").convert("RGB")).reshape(-1, 3).astype(int)
    assert ((colours[:, 0] - colours[:, 2]) > 90).sum() > 200  # red: above the cohort


@pytest.mark.parametrize("rows", [{"site": "A", "date": ""}, {"site": "", "date": "2026-01-05"}, {"age": "3"}], ids=str)
def test_one_group_or_none_has_no_drift(rows):
    table, covariates = cohort(count=60)
    assert drift_of(table, replace(covariates, rows=dict.fromkeys(covariates.rows, rows))) is None
    assert drift_of(table, None) is None


def test_organs_that_are_missing_or_all_alike_do_not_count():
    table, covariates = cohort()
    table.loc[table["label"] == 6, "sphericity"] = 0.5
    fitted = fit_thresholds(table, organs=ORGANS, rule="deciles", features=FEATURES, votes=1)
    decided = judge(table, fitted)
    lacking = decided["label"].eq(1) & (decided["case"] < "p200")
    decided.loc[lacking, [*FEATURES, "decision"]] = [np.nan, np.nan, "missing"]
    drift = measure_drift([decided], fitted, covariates)
    assert drift[(drift["organ"] == "stomach") & (drift["feature"] == "sphericity")].empty
    assert drift[drift["organ"] == "spleen"].groupby("kind")["subjects"].sum().le(2 * 40).all()
