import weakref

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from scripts.common.errors import InputError
from scripts.solf.parquet import read_parts, write_parquet


def test_only_one_table_is_in_memory_at_a_time(tmp_path):
    """Each table is written before the next one is asked for, and is then free to go."""
    alive = []

    def tables():
        for n in range(5):
            table = pd.DataFrame({"case": [f"s{n}"] * 3, "value": np.arange(3.0)})
            assert sum(reference() is not None for reference in alive) <= 1
            alive.append(weakref.ref(table))
            yield table
            del table

    write_parquet(tables(), tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5


def test_failure_while_tables_are_made_leaves_the_old_file(tmp_path):
    write_parquet([pd.DataFrame({"case": ["old"]})], tmp_path / "a.parquet")

    def tables():
        yield pd.DataFrame({"case": ["new"]})
        raise InputError("its label map was changed during the run")

    with pytest.raises(InputError, match="changed during the run"):
        write_parquet(tables(), tmp_path / "a.parquet")
    assert pd.read_parquet(tmp_path / "a.parquet")["case"].tolist() == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_parts_are_read_as_they_were_written(tmp_path):
    tables = [pd.DataFrame({"case": [name] * 2, "label": [1, 2]}) for name in "ab"]
    write_parquet(tables, tmp_path / "a.parquet")
    for part, table in zip(read_parts(tmp_path / "a.parquet"), tables, strict=True):
        pd.testing.assert_frame_equal(part, table)
