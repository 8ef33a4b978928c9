import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from scripts.scoring.metrics import organ_scores, summarise
from scripts.solf.dictionary import FEATURE, _declared, columns_of, tables
from scripts.solf.renaming import COLUMNS as LABEL_NAMES
from scripts.solf.reviewers import agreement, conflicts
from scripts.solf.tables import COLUMNS
from scripts.solf.thresholds import FEATURES

TYPES = {"text": "string", "integer": "int64", "number": "double", "boolean": "bool"}


def test_every_definition_is_used_and_complete():
    used = {name for table in tables().values() for name in table["columns"]}
    assert used == set(_declared()["columns"])
    for table in tables():
        assert tables()[table].get("own", {}).keys() <= set(tables()[table]["columns"])
        for name, column in columns_of(table).items():
            assert column.type in TYPES, name
            assert column.definition.strip(), name
            assert column.unit.replace("/", "").isalnum() or column.unit in ("", "%"), name
            assert column.unit in name or not name.endswith(("_mm", "_mm2", "_mm3", "_ml")), name


def test_features_and_their_percentiles_stand_for_each_feature():
    names = set(columns_of("decisions"))
    assert {*FEATURES, *(f"{name}_percentile" for name in FEATURES)} <= names
    assert not [name for table in tables() for name in columns_of(table) if FEATURE in name]


def test_features_of_a_fit_are_declared_in_their_order():
    assert list(columns_of("features")) == ["case", "label", "organ", *COLUMNS, "contacts"]


def test_tables_of_fixed_columns_are_declared_in_their_order():
    assert list(columns_of("label_names")) == list(LABEL_NAMES)
    nothing = pd.DataFrame(columns=["case", "label", "organ", "verdict", "reviewer", "reviewed_at"])
    assert list(columns_of("agreement")) == list(agreement(nothing))
    rows = organ_scores(*[pd.DataFrame([[1]]).to_numpy()[None]] * 2, spacing_mm=(1, 1, 1), class_names={1: "spleen"})
    assert list(columns_of("compared_summary")) == list(summarise(pd.DataFrame(rows)))
    verdicts = pd.DataFrame(
        {
            "case": "a",
            "label": 1,
            "organ": "b",
            "reviewer": ["x", "y"],
            "reviewed_at": pd.Timestamp("2026-11-21", tz="UTC"),
        }
    )
    assert list(columns_of("conflicts")) == list(conflicts(verdicts.assign(verdict=["accept", "reject"])))


@pytest.mark.parametrize("name", ["decisions", "features"])
def test_parquet_files_hold_unit_and_definition_of_every_column(cohort_dataset, tmp_path, name):
    from scripts.solf.filter import LabelFilter
    from scripts.solf.training import FilterTrainer

    options = {"rule": {"epsilon_percent": 20.0, "features": list(FEATURES[:5])}, "workers": 0}
    FilterTrainer(
        network=LabelFilter(),
        dataset=cohort_dataset(5),
        ckpt_path=tmp_path / "model.pt",
        output_dir=tmp_path,
        qc=True,
        review={"labels": 0},
        **options,
    ).run()
    schema = pq.read_schema(tmp_path / f"{name}.parquet")
    for field in schema:
        column = columns_of(name)[field.name]
        assert field.metadata == {b"unit": column.unit.encode(), b"definition": column.definition.encode()}
        found = str(field.type).removeprefix("large_")
        assert found == TYPES[column.type] or (name, found, column.type) == ("decisions", "double", "integer")
    assert schema.field("volume_mm3").metadata[b"unit"] == b"mm3"
    assert json.loads(schema.metadata[b"pandas"])["columns"], "pandas finds its own metadata"
