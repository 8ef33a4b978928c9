from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.common.errors import InputError
from scripts.common.grids import GridArray
from scripts.models.weight_files import save
from scripts.solf.filter import LabelFilter
from scripts.solf.norms import Norms
from scripts.solf.percentiles import CohortPercentiles
from scripts.solf.tables import cohort_table
from tests.scripts.solf.conftest import AFFINE, small_map

NAMES = {"0": "background", "1": "right kidney", "2": "Left kidney", "3": "liver", "4": "a cyst"}
IDS = np.zeros(73, np.uint8)
IDS[2:4] = 1, 2  # the kidneys of the cohort, renumbered


@pytest.fixture
def fit(fitted, tmp_path):
    def write(thresholds=fitted):
        network = LabelFilter()
        network.thresholds = thresholds
        save(network.state_dict(), tmp_path / "filter.pt")
        return tmp_path / "filter.pt"

    return write


def test_percentiles_are_the_ranks_in_the_cohort(fit, cohort, fitted):
    table = cohort_table(cohort.items(), fitted.organs)
    volumes = table.loc[table["label"] == 2].set_index("case")["volume_mm3"]
    percentiles = CohortPercentiles(fit(), NAMES)
    for seed in (0, 7, 31):
        found = percentiles(GridArray(IDS[small_map(seed)], AFFINE))
        own = volumes[f"s{seed:02d}"]
        below, not_above = 100 * (volumes < own).mean(), 100 * (volumes <= own).mean()
        assert below - 2 <= found[1]["volume_percentile"] <= not_above + 2
        assert set(found) == {1, 2}
        assert all(0 <= value <= 100 for organ in found.values() for value in organ.values())


def test_organ_without_a_cohort_and_sheared_grid_have_no_percentiles(fit, caplog):
    liver = CohortPercentiles(fit(), NAMES)(GridArray(np.full((4, 4, 4), 3, np.uint8), AFFINE))
    assert np.isnan(list(liver[3].values())).all()
    sheared = AFFINE.copy()
    sheared[0, 2] = 1
    assert CohortPercentiles(fit(), NAMES)(GridArray(IDS[small_map(0)], sheared)) == {}
    assert "no percentiles: the affine is sheared" in caplog.text


def test_other_files_are_refused(fit, fitted, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pt: no such file; set solf_reference to the model\.pt of a fit"):
        CohortPercentiles(tmp_path / "nowhere.pt", NAMES)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt: not a fitted label filter; give the model\.pt of a fit"):
        CohortPercentiles(tmp_path / "other.pt", NAMES)
    with pytest.raises(InputError, match="its label table has none of edema, necrotic_core; leave it out"):
        CohortPercentiles(fit(), {"1": "edema", "2": "necrotic core"})
    coding = {"age": {"mean": 50.0, "sd": 9.0, "low": 20.0, "high": 80.0}}
    norms = Norms(coding, np.zeros((2, *fitted.low.shape)), fitted.low, fitted.high)
    with pytest.raises(InputError, match="was fitted with covariates, which are not known here; give a fit without"):
        CohortPercentiles(fit(replace(fitted, norms=norms)), NAMES)
