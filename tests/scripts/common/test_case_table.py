import re

import pytest

from scripts.common.case_table import cell, read_rows, write_rows
from scripts.common.errors import InputError

COLUMNS = ["spleen", "liver"]


def test_table_is_sorted_by_case_and_read_back_as_it_was(tmp_path):
    rows = {"b": ["1.000", ""], "01": ['with "quotes", comma', "line\nbreak"], "NA": ["None", "1e-3"]}
    write_rows(tmp_path / "t.csv", COLUMNS, rows)
    text = 'case,spleen,liver\n01,"with ""quotes"", comma","line\nbreak"\nNA,None,1e-3\nb,1.000,\n'
    assert (tmp_path / "t.csv").read_text() == text
    assert read_rows(tmp_path / "t.csv", COLUMNS) == rows


def test_name_that_is_not_valid_utf_8_is_read_back(tmp_path):
    rows = {b"p9\xe9".decode(errors="surrogateescape"): ["1", "2"], "größe": ["3", "4"]}
    write_rows(tmp_path / "t.csv", COLUMNS, rows)
    assert read_rows(tmp_path / "t.csv", COLUMNS) == rows


def test_missing_and_empty_tables_have_no_rows(tmp_path):
    assert read_rows(tmp_path / "t.csv", COLUMNS) == {}
    write_rows(tmp_path / "t.csv", COLUMNS, {})
    assert read_rows(tmp_path / "t.csv", COLUMNS) == {}


REFUSED = {
    "other organs": ("case,spleen,tumour\na,1,2\n", r"its columns are not those of this run \(tumour, liver\)"),
    "more organs": ("case,spleen,liver,aorta\n", r"its columns are not those of this run \(aorta\)"),
    "other order": ("case,liver,spleen\n", r"its columns are not those of this run \(their order\)"),
    "empty": ("", r"its columns are not those of this run \(case, spleen, liver\)"),
    "semicolons": ("case;spleen;liver\na;1;2\n", r"its columns are not those of this run \(case;spleen;liver, case, "),
    "text": ("some notes\n", r"its columns are not those of this run \(some notes, case, "),
    "cut off": ("case,spleen,liver\na,1,2\nb,1", "row 3 has 2 cells, the head has 3"),
    "open quote": ('case,spleen,liver\na,"1,2\n', r"cannot be read \(unexpected end of data\)"),
    "case twice": ("case,spleen,liver\na,1,2\na,3,4\n", "holds two rows of one case"),
    "binary": ("\x00\x01\xff", "its columns are not those of this run"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_table_that_rows_cannot_be_added_to_is_refused(tmp_path, kind):
    text, problem = REFUSED[kind]
    (tmp_path / "t.csv").write_text(text, encoding="latin-1")
    with pytest.raises(
        InputError, match=rf"{tmp_path}/t\.csv: {problem}.*; move the file away, or set another output_dir\."
    ):
        read_rows(tmp_path / "t.csv", COLUMNS)


def test_folder_in_place_of_the_table_is_refused(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(InputError, match=re.escape("t.csv: cannot be read (Is a directory); move the file away")):
        read_rows(tmp_path / "t.csv", COLUMNS)


@pytest.mark.parametrize(("value", "text"), [(2.0, "2.000"), (-1e-9, "-0.000"), (7, "7"), (False, "False"), ("a", "a")])
def test_cells_are_written_with_their_decimals(value, text):
    assert cell(value, decimals=3) == text
