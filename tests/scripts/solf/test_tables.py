import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.anatomy import anatomy_columns
from scripts.solf.features import label_shape_features, shape_columns
from scripts.solf.measuring import case_features
from scripts.solf.tables import (
    _DTYPES,
    COLUMNS,
    cohort_table,
    feature_table,
    pack_features,
    read_label_table,
    unpack,
)
from tests.scripts.solf.conftest import AFFINE, small_map


def test_array_of_a_case_holds_the_features_of_its_labels():
    label = small_map(0)
    table = feature_table(case_features(label, AFFINE, ORGANS), ORGANS)
    expected = label_shape_features(label, AFFINE)
    pd.testing.assert_frame_equal(table[expected.columns], expected)
    assert table["organ"].tolist() == ["kidney_right", "kidney_left", "muscle"]


def test_columns_and_types_are_those_of_a_measured_table():
    shapes = shape_columns(small_map(0), AFFINE)
    measured = shapes | anatomy_columns(shapes, ORGANS)
    assert list(measured) == ["label", *COLUMNS]
    assert {name: str(column.dtype) for name, column in measured.items() if name != "label"} == _DTYPES


def test_importing_the_tables_compiles_nothing():
    code = "import sys, scripts.solf.tables; assert 'numba' not in sys.modules; import scripts.solf.filter"
    code += ", scripts.solf.runs as runs; found = [f for f in vars(runs).values() if hasattr(f, 'signatures')]"
    code += "; assert len(found) > 5; assert not any(f.signatures for f in found)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], check=True)


def test_packing_loses_nothing():
    features = case_features(small_map(0), AFFINE, ORGANS)
    assert unpack(pack_features(features)).features.tobytes() == features.tobytes()


def test_packing_keeps_what_was_counted_in_the_file(cohort):
    texts = {"sources": '{"=ä": 7}', "contacts": "2 66,3 66", "fixed": "{}", "sha256": "0f"}
    payload = pack_features(cohort["s00"], **texts)
    assert unpack(payload).features.tobytes() == cohort["s00"].tobytes()
    assert unpack(payload)._asdict() == {"content": unpack(payload).content, **texts}
    assert unpack(pack_features(cohort["s00"]))[1:] == ("", "", "", "")


def test_cohort_table_names_the_cases(cohort):
    table = cohort_table(list(cohort.items())[:2], ORGANS)
    assert table["case"].tolist() == ["s00"] * 3 + ["s01"] * 3
    assert table.columns[0] == "case"


def test_default_table_is_that_of_the_72_organs():
    assert read_label_table() == ORGANS
    assert len(ORGANS) == 72


def test_table_of_a_file_is_sorted_and_without_background(json_file):
    path = json_file({"10": "b", "0": "background", "2": "a"})
    assert list(read_label_table(path).items()) == [(2, "a"), (10, "b")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"65536": "x"}', "holds the id 65536; give ids from 1 to 65535."),
        ('{"-1": "x"}', "holds the id -1; give ids from 1 to 65535."),
        ('{"0": "background"}', "holds no label; give ids from 1 to 65535."),
        ("{}", "holds no label; give ids from 1 to 65535."),
        ('{"1": "x", "2": "x"}', "the name 'x' is empty or repeats; give each label a name of its own."),
        ('{"1": " "}', "the name '' is empty or repeats; give each label a name of its own."),
        ('{"1": "x", "01": "y"}', "is not a label table (an id repeats); give JSON such as"),
        ('["spleen"]', "is not a label table"),
        ('[["1", "spleen"]]', "is not a label table"),
        ('{"spleen": 1}', "is not a label table"),
        ('{"1.5": "spleen"}', "is not a label table"),
        ('{"1": ["spleen"]}', "is not a label table"),
        ('{"1": null}', "is not a label table"),
        ('{"1": {"2": "spleen"}}', "is not a label table"),
        ("not JSON", "is not a label table"),
        ("[" * 100_000, "is not a label table"),
        ("\0", "is not a label table"),
    ],
)
def test_bad_label_tables_are_refused(tmp_path, content, message):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")):
        read_label_table(path)


@pytest.mark.parametrize("path", ["none.json", "/", 7, True])
def test_label_table_that_is_not_a_file_is_refused(path):
    with pytest.raises(InputError, match=f"^{path}: is not a label table"):
        read_label_table(path)


def test_label_table_of_an_editor_that_marks_utf8_is_read(tmp_path):
    (tmp_path / "table.json").write_text('{"0": "x", "2": "x", "1": " y "}', encoding="utf-8-sig")
    assert read_label_table(tmp_path / "table.json") == {1: "y", 2: "x"}


def test_ids_of_freesurfer_are_read(json_file):
    table = {"2": "Left-Cerebral-White-Matter", "255": "CC_Anterior", "2035": "ctx-rh-insula", "65535": "x"}
    assert list(read_label_table(json_file(table))) == [2, 255, 2035, 65535]


@pytest.mark.parametrize(
    ("table", "ignore_id", "message"),
    [
        (
            {"254": "a", "255": "b"},
            255,
            "the label 'b' has the id 255, which is ignore_id, the value of ignored voxels; ",
        ),
        ({"1": "a", "2": "b"}, 1, "set ignore_id to an id that no label has, such as 3."),
        (None, 5, "the table of the 72 organs: the label 'liver' has the id 5, which is ignore_id"),
    ],
)
def test_label_with_the_ignore_id_is_refused(json_file, table, ignore_id, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_label_table(json_file(table) if table else "", ignore_id=ignore_id)


def test_missing_label_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: is not a label table \(.*No such file"):
        read_label_table(tmp_path / "none.json")
