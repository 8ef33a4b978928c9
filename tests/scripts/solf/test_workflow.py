import dataclasses
import os
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest

from scripts.cohort import run as run_module
from scripts.common import fingerprint
from scripts.common.errors import InputError
from scripts.solf import workflow
from tests.scripts.solf.report.test_write import received


def test_same_cases_with_the_same_settings_are_measured_once(cohort_dataset, cleaner, measured):
    cleaner(cohort_dataset(3)).run()
    cleaner(cohort_dataset(4)).run()
    assert len(measured) == 4


def test_another_content_of_a_table_of_names_starts_afresh_but_not_another_path(
    cohort_dataset, cleaner, json_file, measured
):
    names = {"2": "kidney_right", "3": "kidney_left", "66": "muscle"}
    for content, file, count in ((names, "a.json", 2), (names, "b.json", 2), ({**names, "1": "spleen"}, "b.json", 4)):
        cleaner(cohort_dataset(2, label_names=json_file(content, file))).run()
        assert len(measured) == count


@pytest.mark.parametrize("change", ["rejected", "thresholds"])
def test_another_filter_starts_afresh(cohort_dataset, cleaner, measured, fitted, change):
    other = {"rejected": "background"} if change == "rejected" else {"thresholds": dataclasses.replace(fitted, votes=1)}
    for options, count in (({}, 2), ({}, 2), (other, 4), (other, 4)):
        cleaner(cohort_dataset(2), **options).run()
        assert len(measured) == count


@pytest.mark.parametrize("module", ["scripts/solf/runs.py", "scripts/io/nifti.py", "scripts/solf/thresholds.py"])
def test_other_code_of_what_runs_on_a_case_starts_afresh(cohort_dataset, cleaner, measured, monkeypatch, module):
    cleaner(cohort_dataset(2)).run()
    original = fingerprint._file_hash
    monkeypatch.setattr(
        fingerprint, "_file_hash", lambda path: "edited" if str(path).endswith(module) else original(path)
    )
    cleaner(cohort_dataset(2)).run()
    assert len(measured) == 4


def test_other_code_of_the_report_changes_no_result(cohort_dataset, cleaner, measured, monkeypatch):
    cleaner(cohort_dataset(2)).run()
    original = fingerprint._file_hash
    folder = "/solf/report/"
    monkeypatch.setattr(fingerprint, "_file_hash", lambda path: "edited" if folder in str(path) else original(path))
    cleaner(cohort_dataset(2)).run()
    assert len(measured) == 2


def test_decisions_of_a_table_are_written_as_one_row_group_with_one_schema(cohort_dataset, cleaner, tmp_path, judged):
    """Only the second of three tables has rejected and dropped labels, and the first has no reason at all."""
    cleaner(cohort_dataset(10), rejected="drop_case", drop_share=0.2).run()
    with pq.ParquetFile(tmp_path / "out" / "decisions.parquet") as file:
        cases = [file.read_row_group(n).to_pandas()["case"].nunique() for n in range(file.num_row_groups)]
        types = {field.name: str(field.type).removeprefix("large_") for field in file.schema_arrow}
    assert cases == [4, 4, 2]
    texts = {"case", "organ", "decision", "reason", "unusual_contacts"}
    numbers = {"normalized_volume", "sphericity", "eccentricity"}
    numbers |= {f"{name}_percentile" for name in numbers}
    assert types == dict.fromkeys(texts, "string") | dict.fromkeys(numbers, "double") | dict.fromkeys(
        ("label", "votes"), "int64"
    ) | dict.fromkeys(("volume_mm3", "asymmetry", "components", "euler_number"), "double") | {"touches_border": "bool"}
    table = pd.read_parquet(tmp_path / "out" / "decisions.parquet")
    assert (table.loc[:11, "reason"] == "").all()
    assert set(table.loc[table["case"] == "s05", "decision"]) == {"reject", "drop"}


def test_report_reads_the_decisions_that_were_written(cohort_dataset, cleaner, tmp_path, judged):
    cleaner(cohort_dataset(10), qc=True).run()
    table = pd.read_parquet(tmp_path / "out" / "decisions.parquet")
    overview, review = (received(tmp_path / "out" / "qc", name) for name in ("overview", "review"))
    rejected = table[table["decision"] == "reject"]
    assert overview["totals"]["cases"] == 10
    assert overview["totals"]["labels"] == len(table)
    assert overview["totals"]["rejected"] == len(rejected) > 1
    shown = review["items"]
    assert len(shown["case"]) == len(table)  # fewer than review_labels
    assert set(zip(rejected["case"], rejected["label"], strict=True)) <= set(
        zip(shown["case"], shown["label"], strict=True)
    )
    assert all("file" in picture for picture in shown["picture"])


def test_options_of_the_review_are_refused_at_once(cohort_dataset, cleaner):
    with pytest.raises(InputError, match="review_order is 'livr': give worst, random or the name of an organ"):
        cleaner(cohort_dataset(1), qc=True, review={"order": "livr"})


def test_failed_cases_are_in_the_report(cohort_dataset, cleaner, tmp_path):
    dataset = cohort_dataset(3)
    dataset.data.append({"case": "bad", "image": str(tmp_path / "none.nii.gz")})
    cleaner(dataset, qc=True).run()
    failures = received(tmp_path / "out" / "qc", "overview")["failures"]
    assert list(failures) == ["bad"]
    assert "no such file" in failures["bad"]


def test_label_map_that_changes_before_the_tables_are_written_is_processed_again_by_the_next_run(
    cohort_dataset, cleaner, monkeypatch, measured
):
    """Its cleaned map and its features are both of the old content, so that the tables are right."""
    run = cleaner(cohort_dataset(2))
    original = run.write_decisions
    monkeypatch.setattr(run, "write_decisions", lambda: os.utime(run.cases[1]["image"], (9, 9)) or original())
    run.run()
    assert run.failures == {}
    cleaner(cohort_dataset(2)).run()
    assert len(measured) == 3


@pytest.mark.parametrize("at", ["s01", "the end"])
def test_output_folder_that_is_removed_during_the_run_is_an_input_error(
    cohort_dataset, cleaner, tmp_path, monkeypatch, at
):
    """What is written afterwards makes a new folder, which would lack the first label map."""

    def run_cohort(task, cases, **options):
        def removing(case):
            if case["case"] == at:
                shutil.rmtree(tmp_path / "out")
            return task(case)

        failures = run_module.run_cohort(removing, cases, **options)
        if at == "the end":
            shutil.rmtree(tmp_path / "out")
        return failures

    monkeypatch.setattr(workflow, "run_cohort", run_cohort)
    with pytest.raises(InputError, match="out: was removed or replaced during the run; run again"):
        cleaner(cohort_dataset(3)).run()
    monkeypatch.undo()
    cleaner(cohort_dataset(3)).run()
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


@pytest.mark.parametrize("name", workflow.RESULTS)
def test_folder_with_the_name_of_a_result_is_refused_at_once(cohort_dataset, cleaner, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"out/{name}: is a folder, where a result will be written; move it away"):
        cleaner(cohort_dataset(1))


def test_folder_in_place_of_the_report_is_refused_at_once(cohort_dataset, cleaner, tmp_path):
    (tmp_path / "out" / "qc").mkdir(parents=True)
    (tmp_path / "out" / "qc" / "mine.txt").touch()
    cleaner(cohort_dataset(1))
    with pytest.raises(InputError, match=r"out/qc: holds mine\.txt, so it is not a report; move it away"):
        cleaner(cohort_dataset(1), qc=True)


def test_second_run_in_the_same_folder_is_refused_from_start_to_end(cohort_dataset, cleaner, monkeypatch, tmp_path):
    run, refused = cleaner(cohort_dataset(2), qc=True), []

    def second(name, original):
        def call(*args, **options):
            with pytest.raises(InputError, match=r"/out: another run is using this folder \(host .*, process"):
                cleaner(cohort_dataset(2)).run()
            refused.append(name)
            return original(*args, **options)

        return call

    steps = ("measure", "write_decisions", "_write_csv", "report")
    for name in steps:
        monkeypatch.setattr(run, name, second(name, getattr(run, name)))
    run.run()
    assert refused == [*steps]
    cleaner(cohort_dataset(2)).run()
