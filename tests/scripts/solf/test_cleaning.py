import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.cohort.journal import Journal
from scripts.common.errors import InputError
from scripts.common.locks import FolderLock
from scripts.solf.covariates import add_covariates
from tests.scripts.solf.conftest import AFFINE, small_map
from tests.scripts.solf.report.test_write import received


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
            assert text[name].tolist() == pytest.approx(table[name].tolist(), rel=1e-5, nan_ok=True)
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


def listed(folder):
    return sorted(path.name.removesuffix("_cleaned.nii.gz") for path in folder.glob("*_cleaned.nii.gz"))


def test_map_of_a_case_that_vanished_is_removed_and_named(cohort_dataset, cleaner, tmp_path, caplog):
    dataset = cohort_dataset(4)
    cleaner(dataset).run()
    Path(dataset.data[3]["image"]).unlink()
    (tmp_path / "out" / "mine_cleaned.nii.gz").write_bytes(b"of another program")
    cleaner(cohort_dataset(3)).run()
    assert listed(tmp_path / "out") == ["mine", "s00", "s01", "s02"]
    assert "removed 1 label maps of earlier runs, of cases gone, dropped or failed: s03" in caplog.text
    caplog.clear()
    (tmp_path / "out" / "s03_cleaned.nii.gz").write_bytes(b"made by hand after it was removed")
    cleaner(cohort_dataset(3)).run()
    assert "s03" in listed(tmp_path / "out")
    assert caplog.text == ""


def test_map_of_another_input_stays_and_is_named(cohort_dataset, cleaner, tmp_path, caplog):
    cleaner(cohort_dataset(4)).run()
    cleaner(cohort_dataset(3)).run()
    assert listed(tmp_path / "out") == ["s00", "s01", "s02", "s03"]
    assert "left 1 label maps of earlier runs that are not part of this input: s03" in caplog.text


def test_map_of_a_case_that_became_unreadable_is_removed_but_not_one_of_others(
    cohort_dataset, cleaner, tmp_path, caplog
):
    dataset = cohort_dataset(4)
    cleaner(cohort_dataset(3)).run()
    (tmp_path / "out" / "s03_cleaned.nii.gz").write_bytes(b"of another program")
    for n in (2, 3):
        Path(dataset.data[n]["image"]).write_bytes(b"")
    cleaner(dataset).run()
    assert listed(tmp_path / "out") == ["s00", "s01", "s03"]
    assert "removed 1 label maps of earlier runs, of cases gone, dropped or failed: s02" in caplog.text
    assert "left 1 label maps of failed cases, which no run here wrote: s03" in caplog.text


def test_map_of_a_dropped_case_is_named(cohort_dataset, cleaner, tmp_path, caplog):
    cleaner(cohort_dataset(7)).run()
    cleaner(cohort_dataset(7), rejected="drop_case", drop_share=0.2).run()
    assert "removed 2 label maps of earlier runs, of cases gone, dropped or failed: s05, s06" in caplog.text
    assert listed(tmp_path / "out") == [f"s{n:02d}" for n in range(5)]


def test_missing_map_of_a_kept_case_is_written_again_where_others_are_dropped(cohort_dataset, cleaner, tmp_path):
    options = {"rejected": "drop_case", "drop_share": 0.2}
    cleaner(cohort_dataset(7), **options).run()
    (tmp_path / "out" / "s01_cleaned.nii.gz").unlink()
    cleaner(cohort_dataset(7), **options).run()
    assert listed(tmp_path / "out") == [f"s{n:02d}" for n in range(5)]


def test_fit_in_the_same_folder_is_no_proof_that_a_map_was_written_here(cohort_dataset, cleaner, tmp_path):
    dataset = cohort_dataset(4)
    (tmp_path / "out").mkdir()
    with Journal(tmp_path / "out" / "journal.sqlite", settings="FilterTrainer 123") as journal:
        for case in dataset.data:
            journal.put(case, b"")
    (tmp_path / "out" / "s03_cleaned.nii.gz").write_bytes(b"of another program")
    Path(dataset.data[3]["image"]).unlink()
    cleaner(cohort_dataset(3)).run()
    assert "s03" in listed(tmp_path / "out")


def test_labels_without_a_counterpart_are_ignored_named_and_counted(
    cohort_dataset, cleaner, tmp_path, json_file, caplog
):
    names = {"66": "muscle", "2": "kidney_right", "3": "brain", "5": "liver", "7": "small_bowel", "8": "colon"}
    dataset = cohort_dataset(4, label_names=json_file(names))
    assert "table.json: 1 of 6 become ignored (255): brain" in caplog.text
    assert "table.json: 2 become one label, intestine: small_bowel, colon" in caplog.text
    caplog.clear()
    cleaner(dataset).run()
    voxels = [sum(int((small_map(n) == label).sum()) for n in range(4)) for label in (2, 3, 66)]
    table = pd.read_csv(tmp_path / "out" / "label_names.csv", keep_default_na=False)
    assert list(table) == ["id", "name", "files", "voxels", "becomes", "organ", "reason"]
    assert table.to_numpy().tolist() == [
        [2, "kidney_right", 4, voxels[0], 2, "kidney_right", ""],
        [3, "brain", 4, voxels[1], 255, "", "the label table has no such name"],
        [5, "liver", 0, 0, 5, "liver", ""],
        [7, "small_bowel", 0, 0, 18, "intestine", "one of 2 that become this organ"],
        [8, "colon", 0, 0, 18, "intestine", "one of 2 that become this organ"],
        [66, "muscle", 4, voxels[2], 66, "muscle", ""],
    ]
    assert f"{voxels[1]} voxels of 1 labels are ignored (255): they are not measured and stay ignored" in caplog.text
    written = np.asarray(nib.load(tmp_path / "out" / "s00_cleaned.nii.gz").dataobj)
    np.testing.assert_array_equal(written == 255, small_map(0) == 3)


def test_ignored_voxels_of_the_input_are_counted_once(cohort_dataset, cleaner, tmp_path, caplog):
    dataset = cohort_dataset(3)
    label = small_map(0)
    label[:3] = 255
    nib.save(nib.Nifti1Image(label, AFFINE), dataset.data[0]["image"])
    cleaner(dataset).run()
    assert caplog.text.count("voxels of 1 labels are ignored (255)") == 1
    table = pd.read_csv(tmp_path / "out" / "label_names.csv", keep_default_na=False)
    count = int((label == 255).sum())
    assert table.to_numpy().tolist() == [[255, "", 1, count, 255, "", "ignore_id of the file"]]
    nib.save(nib.Nifti1Image(small_map(0), AFFINE), dataset.data[0]["image"])
    cleaner(dataset).run()
    assert not (tmp_path / "out" / "label_names.csv").exists()


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


def described(dataset, covariates):
    dataset.data = add_covariates(dataset.data, covariates)
    return dataset


def test_cases_without_covariates_are_marked_and_counted(
    cohort_dataset, cleaner, conditional, covariates, tmp_path, caplog
):
    options = {"thresholds": conditional, "covariates": covariates}
    cleaner(described(cohort_dataset(7), covariates), **options).run()
    table = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False)
    marks = table.groupby("case")["covariates"].unique().map(list).to_dict()
    assert marks == {f"s{n:02d}": ["no row" if n == 3 else "used"] for n in range(7)}
    assert "covariates: 1 of 7 cases are judged by the thresholds without covariates: s03 (no row)" in caplog.text
    rejected = table.set_index(["case", "label"])["decision"] == "reject"
    assert rejected["s05", 2]
    cleaned = np.asarray(nib.load(tmp_path / "out" / "s05_cleaned.nii.gz").dataobj)
    assert 2 not in cleaned
    assert json.loads((tmp_path / "out" / "thresholds.json").read_text())["covariates"]["coding"] == covariates.coding


def test_case_whose_covariates_changed_is_cleaned_again(
    cohort_dataset, cleaner, conditional, covariates, measured, tmp_path
):
    options = {"thresholds": conditional, "covariates": covariates}
    cleaner(described(cohort_dataset(7), covariates), **options).run()
    other = replace(covariates, rows={**covariates.rows, "s02": {"age": "60", "site": "A"}})
    cleaner(described(cohort_dataset(7), other), thresholds=conditional, covariates=other).run()
    assert len(measured) == 8
    assert len(list((tmp_path / "out").glob("*_cleaned.nii.gz"))) == 7


def test_filter_and_covariates_that_do_not_fit_are_refused_or_named(
    cohort_dataset, cleaner, conditional, covariates, measured, caplog
):
    with pytest.raises(InputError, match="the filter was fitted with the covariates age: set covariates to a CSV"):
        cleaner(cohort_dataset(3), thresholds=conditional).run()
    lacking = replace(covariates, rows={"s00": {"site": "A"}})
    with pytest.raises(
        InputError, match=r"covariates cov\.csv: 1 problem(.|\n)*no column age, which the filter was fitted"
    ):
        cleaner(cohort_dataset(3), thresholds=conditional, covariates=lacking).run()
    assert not measured
    cleaner(cohort_dataset(3), covariates=covariates).run()
    assert "covariates: the filter was fitted without; they show drift in the report alone" in caplog.text


def test_drift_between_sites_is_in_the_report_and_its_table(cohort_dataset, cleaner, covariates, tmp_path):
    cleaner(cohort_dataset(60), covariates=covariates, qc=True).run()
    drift = pd.read_csv(tmp_path / "out" / "drift.csv")
    assert set(drift["group"]) == {"A", "B"}
    assert received(tmp_path / "out" / "qc", "overview")["has_drift"]
    assert received(tmp_path / "out" / "qc", "drift")["all"] == len(drift)
    cleaner(cohort_dataset(60), qc=True).run()
    assert not (tmp_path / "out" / "drift.csv").exists()
    assert not received(tmp_path / "out" / "qc", "overview")["has_drift"]
