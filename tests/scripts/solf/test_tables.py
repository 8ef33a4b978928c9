import re

import numpy as np
import pandas as pd
import pytest

from scripts.labels import ORGANS
from scripts.solf.features import label_shape_features
from scripts.solf.tables import COLUMNS, case_features, cohort_table, feature_table, packed, read_label_table, unpacked
from tests.scripts.solf.conftest import AFFINE, small_map


def test_array_of_a_case_holds_the_features_of_its_labels():
    label = small_map(0)
    table = feature_table(case_features(label, AFFINE, ORGANS), ORGANS)
    expected = label_shape_features(label, AFFINE)
    pd.testing.assert_frame_equal(table[expected.columns], expected)
    assert table["organ"].tolist() == ["kidney_right", "kidney_left", "muscle"]


def test_labels_of_the_table_that_a_map_lacks_are_nan():
    features = case_features(small_map(0), AFFINE, ORGANS)
    assert features.shape == (len(ORGANS), len(COLUMNS))
    assert np.isnan(features).all(axis=1).sum() == len(ORGANS) - 3


def test_packing_loses_nothing():
    features = case_features(small_map(0), AFFINE, ORGANS)
    assert unpacked(packed(features)).tobytes() == features.tobytes()


def test_cohort_table_names_the_cases(cohort):
    table = cohort_table(list(cohort.items())[:2], ORGANS)
    assert table["case"].tolist() == ["s00"] * 3 + ["s01"] * 3
    assert table.columns[0] == "case"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "holds no labels: leave it out."),
        (np.full((4, 4, 4), 99, np.uint8), "holds 1 labels that the label table lacks: 99; give --label_table"),
        (np.arange(64, dtype=np.uint8).reshape(4, 4, 4) + 90, "90, 91, 92, 93, 94, 95, 96, 97, ...; give"),
    ],
)
def test_maps_that_cannot_be_judged_are_refused(label, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        case_features(label, AFFINE, ORGANS)


def test_default_table_is_that_of_the_72_organs():
    assert read_label_table() == ORGANS
    assert len(ORGANS) == 72


def test_table_of_a_file_is_sorted_and_without_background(json_file):
    path = json_file({"10": "b", "0": "background", "2": "a"})
    assert list(read_label_table(path).items()) == [(2, "a"), (10, "b")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"255": "x"}, "holds 1 labels up to 255: give ids from 1 to 254."),
        ({"-1": "x"}, "holds 1 labels up to -1: give ids from 1 to 254."),
        ({"0": "background"}, "holds 0 labels up to 0: give ids from 1 to 254."),
        (["spleen"], "holds no label table"),
        ({"spleen": 1}, "holds no label table"),
    ],
)
def test_bad_label_tables_are_refused(json_file, content, message):
    path = json_file(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        read_label_table(path)


def test_missing_label_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: holds no label table \(.*No such file"):
        read_label_table(tmp_path / "none.json")
