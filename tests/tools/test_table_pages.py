from scripts.solf.dictionary import tables
from tools.table_pages import PAGE, table_page


def test_page_is_that_of_the_declared_columns():
    assert PAGE.read_text(encoding="utf-8") == table_page(), "run `make format`"


def test_every_table_and_column_is_on_the_page():
    parts = table_page().split("\n## ")[1:]
    assert len(parts) == len(tables())
    for part, declared in zip(parts, tables().values(), strict=True):
        assert all(f"`{file}`" in part.splitlines()[0] for file in declared["files"])
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| `")]
        assert [row[0].strip("| `") for row in rows] == declared["columns"]
        assert all(len(row) == 4 for row in rows)
