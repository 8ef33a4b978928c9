"""Tables in Parquet files, several hundred cases at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scripts.common.files import atomic_path
from scripts.solf.dictionary import Column


def write_parquet(
    tables: Iterable[pd.DataFrame], path: Path, *, columns: Mapping[str, Column] = MappingProxyType({})
) -> None:
    """Write tables with the same columns as one Parquet file, a row group each, whole or not at all.

    Args:
        tables: at least one, none of them empty; only one is in memory at a time.
        path: the file.
        columns: units and definitions, which become metadata of the fields.
    """
    with atomic_path(path) as temporary, ExitStack() as stack:
        writer = None
        for table in tables:
            rows = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or stack.enter_context(pq.ParquetWriter(temporary, _with_metadata(rows.schema, columns)))
            writer.write_table(rows, row_group_size=len(rows))


def _with_metadata(schema: pa.Schema, columns: Mapping[str, Column]) -> pa.Schema:
    fields = [
        field.with_metadata({"unit": columns[field.name].unit, "definition": columns[field.name].definition})
        if field.name in columns
        else field
        for field in schema
    ]
    return pa.schema(fields, metadata=schema.metadata)


def read_parts(path: Path) -> Iterator[pd.DataFrame]:
    """Yield the tables that `write_parquet` wrote, one at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group).to_pandas()
