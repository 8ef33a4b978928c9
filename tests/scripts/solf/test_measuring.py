import re

import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.measuring import case_features
from scripts.solf.tables import COLUMNS
from tests.scripts.solf.conftest import AFFINE, small_map


def test_labels_of_the_table_that_a_map_lacks_are_nan():
    features = case_features(small_map(0), AFFINE, ORGANS)
    assert features.shape == (len(ORGANS), len(COLUMNS))
    assert np.isnan(features).all(axis=1).sum() == len(ORGANS) - 3


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "holds no labels; leave it out."),
        (np.full((4, 4, 4), 99, np.uint8), "holds 1 label that the label table lacks: 99; set label_table, or"),
        (np.arange(64, dtype=np.uint8).reshape(4, 4, 4) + 90, "90, 91, 92, 93, 94, 95, 96, 97, ...; set"),
    ],
)
def test_maps_that_cannot_be_measured_are_refused(label, message):
    with pytest.raises(InputError, match=re.escape(message)):
        case_features(label, AFFINE, ORGANS)
