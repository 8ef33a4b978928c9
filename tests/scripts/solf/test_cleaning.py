import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from tests.scripts.solf.conftest import AFFINE, small_map


def results(folder):
    names = [path.name for path in folder.iterdir() if path.suffix in (".gz", ".csv", ".parquet")]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def test_decisions_are_derived_once_for_maps_tables_and_report(cohort_dataset, cleaner, judged):
    cleaner(cohort_dataset(10), qc=True).run()
    assert len(judged) == 3  # ten cases in tables of four


def test_csv_and_parquet_hold_the_same_decisions(cohort_dataset, cleaner, tmp_path, judged):
    cleaner(cohort_dataset(10)).run()
    table = pd.read_parquet(tmp_path / "out" / "decisions.parquet")
    text = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False, na_values={"asymmetry": ""})
    assert list(text) == list(table)
    for name in table:
        if table[name].dtype == float:
            assert text[name].tolist() == pytest.approx(table[name].tolist(), rel=1e-5)
        else:
            assert text[name].tolist() == table[name].tolist()
    assert table["case"].tolist() == [f"s{n:02d}" for n in range(10) for _ in range(3)]
    rejected = table.set_index(["case", "organ"])["decision"] == "reject"
    assert rejected["s05", "kidney_right"]
    assert rejected["s06", "kidney_left"]


def test_worker_processes_write_the_same_bytes(cohort_dataset, cleaner, tmp_path):
    cleaner(cohort_dataset(7), out="one", workers=0).run()
    cleaner(cohort_dataset(7), out="two", workers=2).run()
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert len(results(tmp_path / "one")) == 9


def test_one_case(cohort_dataset, cleaner, tmp_path, caplog):
    cleaner(cohort_dataset(1), qc=True).run()
    assert "earlier run" not in caplog.text
    cleaner(cohort_dataset(1)).run()
    assert "out/qc: is the report of an earlier run; set qc to true to write it anew" in caplog.text
    assert len(pd.read_parquet(tmp_path / "out" / "decisions.parquet")) == 3
    assert (tmp_path / "out" / "qc" / "index.html").is_file()


def test_failed_cases_are_left_out_of_the_decisions(cohort_dataset, cleaner, tmp_path):
    dataset = cohort_dataset(6)
    cleaner(dataset).run()
    for n in range(5):
        Path(dataset.data[n]["image"]).write_bytes(b"")
    run = cleaner(dataset, qc=True)
    run.run()
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["s05_cleaned.nii.gz"]
    assert set(run.failures) == {f"s{n:02d}" for n in range(5)}
    assert set(pd.read_parquet(tmp_path / "out" / "decisions.parquet")["case"]) == {"s05"}
    with pytest.raises(SystemExit, match="5 of 6 cases failed:"):
        run.exit_if_failed()


def test_cohort_without_a_readable_case_is_an_input_error(cohort_dataset, cleaner, tmp_path):
    dataset = cohort_dataset(2)
    for case in dataset.data:
        Path(case["image"]).write_bytes(b"")
    with pytest.raises(InputError, match=r"^none of 2 label maps could be measured: .*s00\.nii\.gz: cannot be read"):
        cleaner(dataset).run()
    assert (tmp_path / "out" / "failed.csv").is_file()
    assert not (tmp_path / "out" / "decisions.parquet").exists()


def test_dropped_case_has_no_map_even_if_an_earlier_run_wrote_one(cohort_dataset, cleaner, tmp_path):
    cleaner(cohort_dataset(7)).run()
    assert (tmp_path / "out" / "s05_cleaned.nii.gz").is_file()
    cleaner(cohort_dataset(7), rejected="drop_case", drop_share=0.2).run()
    assert not (tmp_path / "out" / "s05_cleaned.nii.gz").exists()
    decisions = pd.read_parquet(tmp_path / "out" / "decisions.parquet").set_index(["case", "organ"])["decision"]
    assert decisions["s05"].to_dict() == {"kidney_right": "reject", "kidney_left": "drop", "muscle": "drop"}
    cleaner(cohort_dataset(7)).run()
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "out" / "s05_cleaned.nii.gz").dataobj) == 255, small_map(5, half=[2]) == 2
    )


def test_temporary_files_of_a_killed_run_are_removed_but_not_those_of_a_run_in_progress(
    cohort_dataset, cleaner, tmp_path
):
    (tmp_path / "out").mkdir()
    temporary = tmp_path / "out" / ".tmp-0123456789abcdef.parquet"
    temporary.write_bytes(b"half a table")
    unfinished = tmp_path / "out" / ".tmp-qc-0123456789abcdef" / "data"
    unfinished.mkdir(parents=True)
    with FolderLock(tmp_path / "out"):
        temporary.touch()
        with pytest.raises(InputError, match="another run is using this folder"):
            cleaner(cohort_dataset(1)).run()
    assert temporary.exists()
    assert unfinished.exists()
    cleaner(cohort_dataset(1)).run()
    assert not list((tmp_path / "out").glob(".*"))


def test_filter_that_rejects_a_quarter_of_all_labels_is_suspicious(cohort_dataset, cleaner, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        cleaner(cohort_dataset(3)).run()
    assert f"labels: 9 keep; wrote {tmp_path / 'out' / 'decisions.csv'}" in caplog.text
    assert "were the thresholds fitted" not in caplog.text
    dataset = cohort_dataset(1)
    nib.save(nib.Nifti1Image(small_map(5, half=[2, 3]), AFFINE), dataset.data[0]["image"])
    cleaner(dataset).run()
    assert "% of all labels were rejected: were the thresholds fitted to maps of the same labels" in caplog.text
