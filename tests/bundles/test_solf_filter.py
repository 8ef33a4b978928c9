"""Workflows of the label filter, on small cohorts of phantoms."""

import contextlib
import filecmp
import itertools
import json
import shutil
import sqlite3
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from scripts.common.errors import InputError, root_cause
from scripts.common.files import file_sha256
from scripts.common.organs import ORGANS
from scripts.solf.dictionary import columns_of, tables
from scripts.solf.report import drift
from scripts.solf.thresholds import FEATURES
from tests.conftest import PAPER, ROOT, bundle_workflow, command_line, run_bundle
from tools.label_cohort import make_cohort

BUNDLE = "solf_filter"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Label maps of 25 people with many errors, and the correct ones."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), subjects=25, error_rate=0.1, seed=5, truth=True)


@pytest.fixture(scope="module")
def raw(cohort):
    return cohort.labels[0].parent


@pytest.fixture(scope="module")
def fitted(raw, tmp_path_factory):
    """Folders of a fit: `models/model.pt` and `fit`."""
    folder = tmp_path_factory.mktemp("fitted")
    train(raw, folder)
    return folder


def train(data, folder, **settings):
    settings = {"workers": 0, **PAPER, "epsilon_percent": 4, "qc": False, **settings}
    folders = {"output_dir": str(folder / "fit"), "ckpt_dir": str(folder / "models")}
    return run_bundle(BUNDLE, ["train.json"], dataset_dir=str(data), **folders, **settings)


def clean(data, out, fitted, **settings):
    settings = {"workers": 0, "ckpt_path": str(fitted / "models" / "model.pt"), **settings}
    return run_bundle(BUNDLE, ["inference.json"], input=str(data), output_dir=str(out), **settings)


def voxels(path):
    return voxels_of(nib.load(path))


def voxels_of(image):
    return np.asarray(image.dataobj)


def test_fit_writes_features_thresholds_and_weights(fitted, cohort):
    features = pd.read_parquet(fitted / "fit" / "features.parquet")
    assert features["case"].nunique() == 25
    assert {"organ", "sphericity", "touches_border", "asymmetry", "normalized_volume"} <= set(features)
    thresholds = json.loads((fitted / "fit" / "thresholds.json").read_text())
    liver = features[features["organ"] == "liver"]
    assert thresholds["organs"]["5"]["subjects"] == len(liver)
    assert thresholds["organs"]["5"]["sphericity"]["low"] == pytest.approx(liver["sphericity"].quantile(0.04))
    weights = torch.load(fitted / "models" / "model.pt", weights_only=True)
    assert weights["low"][list(ORGANS).index(5), 1] == pytest.approx(liver["sphericity"].quantile(0.04))


def test_cleaning_keeps_a_record_of_each_run(fitted, cohort, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(cohort.labels[0].parent, data)
    clean(data, out, fitted)
    changed, *_, kept = sorted(data.glob("*.nii.gz"))
    nib.save(nib.load(changed), data / "again.nii.gz")
    changed.unlink()
    clean(data, out, fitted)
    first, second = json.loads((out / "run.json").read_text())["runs"]
    assert first["bundle"] == second["bundle"] == "SOLF, a filter of automatic organ labels"
    assert first["weights"]["sha256"] == file_sha256(fitted / "models" / "model.pt")
    assert second["started"] <= second["finished"]
    assert len(first["cases"]) == len(second["cases"]) == 25
    assert first["cases"].keys() ^ second["cases"].keys() == {changed.name.removesuffix(".nii.gz"), "again"}
    for run in (first, second):
        assert run["cases"][kept.name.removesuffix(".nii.gz")] == {str(kept): file_sha256(kept)}
    clean(data, tmp_path / "counts", fitted, aggregate_only=True)
    assert json.loads((tmp_path / "counts" / "run.json").read_text())["runs"][0]["cases"] == {}


def test_cleaned_maps_lack_exactly_the_rejected_labels(fitted, cohort, raw, tmp_path):
    clean(raw, tmp_path, fitted)
    decisions = pd.read_csv(tmp_path / "decisions.csv")
    rejected = decisions[decisions["decision"] == "reject"]
    assert 5 < len(rejected) < 0.3 * len(decisions)
    assert rejected["reason"].notna().all()
    for path in cohort.labels:
        case = path.name.removesuffix(".nii.gz")
        before, after = nib.load(path), nib.load(tmp_path / f"{case}_cleaned.nii.gz")
        gone = rejected.loc[rejected["case"] == case, "label"]
        np.testing.assert_array_equal(
            voxels(after.get_filename()), np.where(np.isin(before.dataobj, gone), 255, before.dataobj)
        )
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-6)
        assert after.get_data_dtype() == np.uint8


def test_evaluator_and_run_write_the_same_bytes(fitted, raw, tmp_path):
    clean(raw, tmp_path / "run", fitted)
    settings = {"input": str(raw), "output_dir": str(tmp_path / "evaluator")}
    settings["ckpt_path"] = str(fitted / "models" / "model.pt")
    workflow = bundle_workflow(BUNDLE, ["inference.json"], kind="infer", **settings)
    workflow.initialize()
    workflow.evaluator.run()
    names = [path.name for path in sorted((tmp_path / "run").glob("*.nii.gz"))]
    assert len(names) == 25
    assert filecmp.cmpfiles(tmp_path / "run", tmp_path / "evaluator", names, shallow=False) == (names, [], [])


@pytest.fixture(scope="module")
def oriented(cohort, tmp_path_factory):
    """One person's label map and the correct one in every order and direction of the axes, by axis codes."""
    folder = tmp_path_factory.mktemp("oriented")
    for source, name in ((cohort.labels[1], "labels"), (cohort.truth[1], "truth")):
        image = nib.load(source)
        (folder / name).mkdir()
        for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
            turned = image.as_reoriented(np.stack([order, flips], axis=1))
            nib.save(turned, folder / name / f"{''.join(nib.aff2axcodes(turned.affine))}.nii.gz")
    assert len(list((folder / "labels").iterdir())) == 48
    return folder


@pytest.mark.parametrize("way", ["cleaner", "evaluator"])
def test_label_maps_of_every_orientation_are_cleaned_alike(fitted, oriented, cohort, tmp_path, way):
    if way == "cleaner":
        clean(oriented / "labels", tmp_path, fitted)
    else:
        settings = {"input": str(oriented / "labels"), "output_dir": str(tmp_path)}
        settings["ckpt_path"] = str(fitted / "models" / "model.pt")
        workflow = bundle_workflow(BUNDLE, ["inference.json"], kind="infer", **settings)
        workflow.initialize()
        workflow.evaluator.run()
    reference = nib.load(cohort.labels[1])
    cleaned = nib.load(tmp_path / f"{''.join(nib.aff2axcodes(reference.affine))}_cleaned.nii.gz")
    assert (voxels(cleaned.get_filename()) == 255).any()
    for path in sorted((oriented / "labels").iterdir()):
        written = nib.load(tmp_path / path.name.replace(".nii.gz", "_cleaned.nii.gz"))
        given = nib.load(path)
        np.testing.assert_allclose(written.affine, given.affine, atol=1e-5)
        assert written.get_data_dtype() == np.uint8
        turn = nib.orientations.ornt_transform(*map(nib.io_orientation, (cleaned.affine, written.affine)))
        np.testing.assert_array_equal(voxels(written.get_filename()), voxels_of(cleaned.as_reoriented(turn)))


def test_label_maps_of_every_orientation_are_scored_alike(fitted, oriented, tmp_path):
    settings = {"input": str(oriented / "labels"), "reference": str(oriented / "truth"), "output_dir": str(tmp_path)}
    settings["ckpt_path"] = str(fitted / "models" / "model.pt")
    run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **settings)
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert scores["case"].nunique() == 48
    assert (scores.groupby("label")[["decision", "dice"]].nunique() == 1).all(axis=None)
    assert 0 < scores["dice"].min() < 0.9 < scores["dice"].max()


def test_killed_cleaning_is_resumed_and_gives_the_same_bytes(fitted, raw, tmp_path):
    settings = {"input": str(raw), "ckpt_path": str(fitted / "models" / "model.pt"), "workers": 0}
    config = str(ROOT / "bundles" / BUNDLE / "configs" / "inference.json")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
    given = command_line({**settings, "output_dir": str(tmp_path / "out"), "bundle_root": str(tmp_path)})
    process = subprocess.Popen([*command, *given], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("*.nii.gz"))) < 5:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "decisions.csv").exists()
    clean(raw, tmp_path / "out", fitted)
    clean(raw, tmp_path / "undisturbed", fitted)
    of_the_run = {"journal.sqlite", "run.json"}
    names = [path.name for path in (tmp_path / "out").iterdir() if path.name not in of_the_run]
    assert len(names) == 28
    assert {"decisions.csv", "decisions.parquet", "thresholds.json"} < set(names)
    assert filecmp.cmpfiles(tmp_path / "out", tmp_path / "undisturbed", names, shallow=False)[1:] == ([], [])


def test_second_run_measures_nothing_again_and_gives_the_same_bytes(fitted, raw, tmp_path, monkeypatch):
    train(raw, tmp_path)
    shutil.copytree(tmp_path, tmp_path / "first")

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("scripts.solf.transforms.features_and_contacts", never)
    train(raw, tmp_path)
    for name in ("fit/features.parquet", "fit/thresholds.json", "models/model.pt"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name
        assert (tmp_path / name).read_bytes() == (fitted / name).read_bytes(), name


def test_another_setting_or_a_removed_result_is_processed_again(fitted, cohort, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in cohort.labels[:3]:
        shutil.copy(path, data)
    out = tmp_path / "out"
    clean(data, out, fitted)
    first, second, _ = sorted(out.glob("*.nii.gz"))
    content = second.read_bytes()
    first.unlink()
    second.write_bytes(b"left alone, as the journal says that it is finished")
    clean(data, out, fitted)
    assert first.is_file()
    assert second.stat().st_size < 100
    clean(data, out, fitted, rejected="background")
    assert not (voxels(second) == 255).any()
    clean(data, out, fitted)
    assert second.read_bytes() == content


def test_thresholds_of_another_field_of_view_cause_a_warning(fitted, raw, cohort, tmp_path, caplog):
    """A third of each body is cut off, so that what is left is a larger share of it, elsewhere."""
    (tmp_path / "cut").mkdir()
    for path in cohort.labels[:3]:
        image = nib.load(path)
        nib.save(image.slicer[:, :, : image.shape[2] // 3], tmp_path / "cut" / path.name)
    clean(raw, tmp_path / "whole", fitted)
    assert "same labels and field of view" not in caplog.text
    clean(tmp_path / "cut", tmp_path / "out", fitted)
    assert "of all labels were rejected: were the thresholds fitted to maps of the same labels" in caplog.text


def test_drop_case_writes_no_map_but_its_decisions(fitted, raw, tmp_path):
    clean(raw, tmp_path, fitted, rejected="drop_case", drop_share=0.05)
    decisions = pd.read_csv(tmp_path / "decisions.csv")
    shares = decisions.groupby("case")["decision"].agg(lambda d: (d == "reject").mean())
    dropped = set(shares.index[shares > 0.05])
    assert 0 < len(dropped) < 25
    assert dropped == set(decisions.loc[decisions["decision"] == "drop", "case"])
    assert {path.name.removesuffix("_cleaned.nii.gz") for path in tmp_path.glob("*.nii.gz")} == set(
        shares.index
    ) - dropped


def test_evaluation_against_manual_labels_and_known_errors(fitted, cohort, raw, tmp_path):
    settings = {
        "input": str(raw),
        "reference": str(cohort.truth[0].parent),
        "known_errors": str(raw.parent / "errors.csv"),
        "ckpt_path": str(fitted / "models" / "model.pt"),
        "output_dir": str(tmp_path),
    }
    workflow = run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **settings)
    metrics = workflow.parser.get_parsed_content("evaluator").state.metrics
    scores, errors = pd.read_csv(tmp_path / "scores.csv"), pd.read_csv(tmp_path / "errors.csv").set_index("kind")
    kept = scores["decision"] == "keep"
    assert metrics["dice_raw"] == pytest.approx(scores["dice"].mean(), abs=1e-6)
    assert metrics["dice_kept"] == pytest.approx(scores.loc[kept, "dice"].mean(), abs=1e-6)
    assert metrics["dice_raw"] < metrics["dice_kept"] < 1
    assert errors.loc["all", "labels"] == len(cohort.errors)
    wrong = scores.merge(cohort.errors, on=["case", "label"], how="left")["kind_y"].notna()
    assert metrics["recall"] == pytest.approx((wrong & ~kept).sum() / wrong.sum())
    assert metrics["precision"] == pytest.approx((wrong & ~kept).sum() / (~kept).sum())
    summary = pd.read_csv(tmp_path / "summary.csv").set_index("organ")
    assert summary.loc["liver", "labels"] == (scores["organ"] == "liver").sum()


def test_known_errors_whose_label_is_absent_are_missed_or_found(fitted, cohort, raw, tmp_path, caplog):
    """The filter's table has a row for an absent organ only if it reports it as missing."""
    row = nib.load(cohort.labels[3])
    absent = sorted(set(ORGANS) - set(np.unique(row.dataobj).tolist()))
    if not absent:
        pytest.fail("the phantom has all organs")
    listed = pd.concat(
        [cohort.errors, pd.DataFrame({"case": "person_0003", "label": absent, "kind": "lost"}), cohort.errors[:1]]
    )
    listed.iloc[-1, 0] = "persn_0001"
    listed[["case", "label", "kind"]].to_csv(tmp_path / "known.csv", index=False)
    settings = {"input": str(raw), "known_errors": str(tmp_path / "known.csv"), "output_dir": str(tmp_path / "out")}
    settings["ckpt_path"] = str(fitted / "models" / "model.pt")
    run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **settings)
    rates = pd.read_csv(tmp_path / "out" / "errors.csv").set_index("kind")
    assert rates.loc["all", "labels"] == len(cohort.errors) + len(absent)
    scores = pd.read_csv(tmp_path / "out" / "scores.csv").set_index(["case", "label"])
    lost = scores.loc["person_0003"].loc[absent]
    assert set(lost["decision"]) <= {"absent", "missing"}
    assert rates.loc["lost", "found"] == (lost["decision"] == "missing").sum()
    assert "known_errors: 1 of its cases are not in this run, and left out: persn_0001 (person_0001?)" in caplog.text
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("label")
    assert summary.loc[absent[0], "labels"] == sum(
        (np.asarray(nib.load(f).dataobj) == absent[0]).any() for f in cohort.labels
    )


def verdict_table(errors, decisions, reviewer, *, cases=25):
    """What a reviewer who knows all errors answers about the first cases."""
    table = decisions.loc[decisions["decision"] != "missing", ["case", "label", "organ"]]
    table = table[table["case"] < f"person_{cases:04d}"].merge(errors, on=["case", "label"], how="left")
    verdicts = np.where(table["kind"].isna(), "accept", "reject")
    columns = {"verdict": verdicts, "reviewer": reviewer, "reviewed_at": "2026-11-21T20:15:00Z", "comment": ""}
    return table.drop(columns="kind").assign(**columns)


def test_verdicts_stand_above_the_rule_in_maps_tables_and_the_evaluator(fitted, cohort, raw, tmp_path):
    clean(raw, tmp_path / "rule", fitted)
    before = pd.read_csv(tmp_path / "rule" / "decisions.csv")
    errors = cohort.errors[["case", "label", "kind"]]
    (tmp_path / "verdicts").mkdir()
    verdict_table(errors, before, "alice").to_csv(tmp_path / "verdicts" / "alice.csv", index=False)
    clean(raw, tmp_path / "run", fitted, verdicts=str(tmp_path / "verdicts"))
    after = pd.read_csv(tmp_path / "run" / "decisions.csv")
    rejected = after.loc[after["decision"] == "reject", ["case", "label"]]
    known = errors.merge(before[["case", "label"]], on=["case", "label"])
    assert set(map(tuple, rejected.to_numpy())) == set(zip(known["case"], known["label"], strict=True))
    settings = {"input": str(raw), "output_dir": str(tmp_path / "evaluator"), "verdicts": str(tmp_path / "verdicts")}
    settings["ckpt_path"] = str(fitted / "models" / "model.pt")
    workflow = bundle_workflow(BUNDLE, ["inference.json"], kind="infer", **settings)
    workflow.initialize()
    workflow.evaluator.run()
    names = [path.name for path in sorted((tmp_path / "run").glob("*.nii.gz"))]
    assert filecmp.cmpfiles(tmp_path / "run", tmp_path / "evaluator", names, shallow=False) == (names, [], [])
    assert filecmp.cmpfiles(tmp_path / "run", tmp_path / "rule", names, shallow=False)[1]


def test_evaluation_by_verdicts_scores_the_rule_alone_and_reviewers_against_each_other(
    fitted, cohort, raw, tmp_path, caplog
):
    clean(raw, tmp_path / "rule", fitted)
    decisions = pd.read_csv(tmp_path / "rule" / "decisions.csv")
    errors = cohort.errors[["case", "label", "kind"]]
    (tmp_path / "verdicts").mkdir()
    alice = verdict_table(errors, decisions, "alice", cases=20)
    bob = verdict_table(errors, decisions, "bob", cases=5)
    bob.loc[:2, "verdict"] = bob.loc[:2, "verdict"].map({"accept": "reject", "reject": "accept"})
    ghost = alice[:1].assign(case="person_9999", label=5, organ="liver")
    pd.concat([alice, ghost]).to_csv(tmp_path / "verdicts" / "alice.csv", index=False)
    bob.to_csv(tmp_path / "verdicts" / "bob.csv", index=False)
    settings = {"input": str(raw), "verdicts": str(tmp_path / "verdicts"), "output_dir": str(tmp_path / "out")}
    settings["ckpt_path"] = str(fitted / "models" / "model.pt")
    workflow = run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **settings)
    rates = pd.read_csv(tmp_path / "out" / "errors.csv").set_index("kind").loc["verdicts"]
    judged = alice[~alice.index.isin(range(3))].merge(decisions[["case", "label", "decision"]], on=["case", "label"])
    wrong, found = judged["verdict"] == "reject", judged["decision"] == "reject"
    assert rates["labels"] == wrong.sum() > 5
    assert rates["found"] == (wrong & found).sum()
    assert rates["false_rejection_rate"] == pytest.approx((found & ~wrong).sum() / (~wrong).sum(), abs=1e-6)
    assert workflow.parser.get_parsed_content("evaluator").state.metrics["verdicts_f1"] == pytest.approx(
        rates["f1"], abs=1e-6
    )
    agreement = pd.read_csv(tmp_path / "out" / "agreement.csv")
    assert agreement[["labels", "agreed"]].to_numpy().tolist() == [[len(bob), len(bob) - 3]]
    assert len(pd.read_csv(tmp_path / "out" / "conflicts.csv")) == 3
    assert "verdicts: 1 of its cases are not in this run, and left out: person_9999" in caplog.text
    name = "person_0000_cleaned.nii.gz"
    assert filecmp.cmp(tmp_path / "out" / name, tmp_path / "rule" / name, shallow=False), "verdicts change no map here"


def test_review_of_a_fit_is_followed_evaluated_and_improves_the_next_fit(cohort, raw, tmp_path):
    """The loop of a lab: clean by the paper's rule, review, choose a rule by the verdicts, evaluate both by them."""
    paper = {"rule": "percentile", "features": ["normalized_volume", "sphericity", "eccentricity"], "votes": 2}
    train(raw, tmp_path / "paper", **paper)
    clean(raw, tmp_path / "before", tmp_path / "paper")
    decisions = pd.read_csv(tmp_path / "before" / "decisions.csv")
    errors = cohort.errors[["case", "label", "kind"]]
    reviewed = str(tmp_path / "verdicts.csv")
    verdict_table(errors, decisions, "alice", cases=20).to_csv(reviewed, index=False)
    settings = {"dataset_dir": str(raw), "output_dir": str(tmp_path / "fit"), "ckpt_dir": str(tmp_path / "models")}
    settings |= {"verdicts": reviewed, "max_false_rejections": 0.03, "qc": False, "workers": 0}
    settings |= {**paper, "epsilon_percent": 5}
    settings["train#trainer#factors"] = {"mad": [4.0, 5.0], "iqr": [3.0]}
    run_bundle(BUNDLE, ["train.json", "tune.json"], **settings)
    table = pd.read_csv(tmp_path / "fit" / "tuning.csv")
    assert (table["false_rejections"] <= 0.03).any()
    chosen, current = (table[table[name]].iloc[0] for name in ("chosen", "current"))
    assert chosen["f1"] > current["f1"]
    thresholds = json.loads((tmp_path / "fit" / "thresholds.json").read_text())
    assert thresholds["rule"] == chosen["rule"]
    assert set(thresholds["features"]) == set(chosen["features"].split())
    f1 = {}
    for name, folder in (("before", tmp_path / "paper"), ("after", tmp_path)):
        settings = {"input": str(raw), "verdicts": reviewed, "output_dir": str(tmp_path / f"eval_{name}")}
        settings["ckpt_path"] = str(folder / "models" / "model.pt")
        run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **settings)
        f1[name] = pd.read_csv(tmp_path / f"eval_{name}" / "errors.csv").set_index("kind").loc["verdicts", "f1"]
    assert f1["after"] > f1["before"] + 0.1


def test_two_label_maps_of_each_person_are_compared(cohort, raw, tmp_path):
    """The maps with errors against the correct ones: what differs much is an error."""
    settings = {"input": str(raw), "other": str(cohort.truth[0].parent), "output_dir": str(tmp_path), "workers": 0}
    run_bundle(BUNDLE, ["agreement.json"], min_dice=0.9, **settings)
    decisions = pd.read_csv(tmp_path / "decisions.csv")
    errors = cohort.errors[["case", "label", "kind"]]
    found = decisions.merge(errors, on=["case", "label"], how="outer").set_index("decision")["kind"].notna()
    assert found["reject"].mean() > 0.8
    assert not found["keep"].any()
    assert len(list(tmp_path.glob("*_consensus.nii.gz"))) == 25


def test_every_column_that_a_run_writes_is_declared_and_every_declared_one_is_written(cohort, raw, tmp_path):
    """All tables of a fit, cleaning, evaluation, tuning and agreement, against docs/tables.md."""
    folders = {name: tmp_path / name for name in ("models", "fit", "tuned", "clean", "eval", "two", "aggregate")}
    truth, errors = str(cohort.truth[0].parent), str(raw.parent / "errors.csv")
    train(raw, tmp_path, qc=True, review_labels=0, features=list(FEATURES), votes=1)
    decisions = pd.read_parquet(tmp_path / "fit" / "decisions.parquet")
    (tmp_path / "verdicts").mkdir()
    for name, cases in (("alice", 20), ("bob", 5)):
        table = verdict_table(cohort.errors[["case", "label", "kind"]], decisions, name, cases=cases)
        table.loc[:2, "verdict"] = "accept" if name == "bob" else "reject"
        table.to_csv(tmp_path / "verdicts" / f"{name}.csv", index=False)
    settings = {"verdicts": str(tmp_path / "verdicts")}
    (tmp_path / "names.json").write_text(json.dumps({str(n): "x" if n == 2 else name for n, name in ORGANS.items()}))
    clean(raw, folders["clean"], tmp_path, label_names=str(tmp_path / "names.json"), **settings)
    clean(raw, folders["aggregate"], tmp_path, aggregate_only=True)
    given = {"input": str(raw), "ckpt_path": str(tmp_path / "models" / "model.pt"), "output_dir": str(folders["eval"])}
    run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **given, **settings, reference=truth, known_errors=errors)
    tune = {"train#trainer#factors": {"mad": [4.0]}, "max_false_rejections": 0.2, "qc": False, "workers": 0}
    tune |= {"dataset_dir": str(raw), "output_dir": str(folders["tuned"]), "known_errors": errors, "epsilon_percent": 5}
    run_bundle(BUNDLE, ["train.json", "tune.json"], ckpt_dir=str(folders["tuned"]), **tune)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "person_0000.nii.gz").write_bytes(b"")
    for path in cohort.labels[1:3]:
        shutil.copy(path, tmp_path / "maps")
    two = {"input": str(tmp_path / "maps"), "other": truth, "output_dir": str(folders["two"]), "workers": 0}
    with pytest.raises(SystemExit, match="1 of 3 cases failed"):
        run_bundle(BUNDLE, ["agreement.json"], **two)
    compared = {"decisions.csv": "compared", "decisions.parquet": "compared", "summary.csv": "compared_summary"}
    written = {}
    for path in [path for folder in folders.values() for path in folder.rglob("*.[cp]*") if "qc" not in path.parts]:
        if path.suffix in (".csv", ".parquet"):
            name = compared.get(path.name, path.stem) if path.parent == folders["two"] else path.stem
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            written.setdefault(name, set()).update(table)
    declared = {name: set(columns_of(name)) for name in tables() if name != "drift"}  # whose writer has the same names
    for name in ("decisions", "scores"):
        declared[name] -= {"fixed", "covariates"}  # written with these settings, by other tests
    assert written == declared
    assert tuple(columns_of("drift")) == drift.COLUMNS


def run_command(*words, **settings):
    """Run a command of the documentation in the folder of the bundle, and return what it logs."""
    command = [sys.executable, "-m", "monai.bundle", *words, *command_line(settings)]
    folder = ROOT / "bundles" / BUNDLE
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def journal_rows(folder):
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as database:
        return {name: rest for name, *rest in database.execute("SELECT name, stamp, crc FROM cases")}


def test_crop_that_was_fixed_by_hand_is_taken_back_and_only_its_case_measured_again(fitted, cohort, tmp_path):
    """Crop, edit and clean again by the commands of the documentation; the editor is the phantom's truth."""
    out, settings = tmp_path / "out", {"input": str(cohort.labels[0].parent), "workers": 0}
    settings |= {"output_dir": str(out), "ckpt_path": str(fitted / "models" / "model.pt")}
    inference = ("run", "--config_file", "configs/inference.json")
    code, _ = run_command(*inference, **settings, qc=True, crops=True)
    assert code == 0
    before, decisions = journal_rows(out), pd.read_csv(out / "decisions.csv")
    assert "fixed" not in decisions
    errors = decisions[decisions["decision"] == "reject"].merge(cohort.errors, on=["case", "label"])
    case, label = errors.loc[errors["kind"] == "fragments", ["case", "label"]].iloc[0]  # the crop holds them all
    [crop] = (out / "crops" / case).glob(f"{label}_*_labels.nii.gz")
    labels, truth = (
        nib.load(folder / f"{case}.nii.gz") for folder in (cohort.labels[0].parent, cohort.truth[0].parent)
    )
    image = nib.load(crop)
    first = np.round(np.linalg.inv(labels.affine) @ image.affine[:, 3])[:3].astype(int)
    box = tuple(slice(low, low + size) for low, size in zip(first, image.shape, strict=True))
    repaired = voxels_of(labels).copy()
    repaired[box] = voxels_of(truth)[box]
    nib.save(nib.Nifti1Image(repaired[box], image.affine), crop)
    code, log = run_command(*inference, **settings, fixed=str(out / "crops"))
    assert code == 0
    unchanged = len(list((out / "crops").rglob("*_labels.nii.gz"))) - 1
    assert f"0 whole maps, 1 crops, and {unchanged} crops that nobody changed" in log
    assert "labels of 1 cases differ from the label maps" in log
    assert {name for name, row in journal_rows(out).items() if row != before[name]} == {case}
    after = pd.read_csv(out / "decisions.csv", keep_default_na=False)
    own = after[after["case"] == case].set_index("label")
    assert own.loc[label, ["fixed", "decision"]].tolist() == ["crop", "keep"]
    gone = own.index[own["decision"] == "reject"]
    expected = np.where(np.isin(repaired, gone), 255, repaired)
    np.testing.assert_array_equal(voxels(out / f"{case}_cleaned.nii.gz"), expected)
    assert set(after.loc[after["case"] != case, "fixed"]) == {""}


def test_evaluation_and_fit_see_fixed_maps_and_no_verdict_that_is_older(fitted, cohort, raw, tmp_path):
    case, label = cohort.errors.loc[0, ["case", "label"]]
    (tmp_path / "fixed").mkdir()
    shutil.copy(cohort.truth[0].parent / f"{case}.nii.gz", tmp_path / "fixed")
    verdict = "case,label,verdict,reviewer,reviewed_at\n{},{},reject,alice,2020-01-01T00:00:00Z\n"
    right = cohort.errors.loc[len(cohort.errors) - 1, ["case", "label"]]
    assert right["case"] != case
    (tmp_path / "verdicts.csv").write_text(verdict.format(case, label) + verdict.format(*right).splitlines()[1])
    settings = {"input": str(raw), "fixed": str(tmp_path / "fixed"), "verdicts": str(tmp_path / "verdicts.csv")}
    settings |= {"reference": str(cohort.truth[0].parent), "output_dir": str(tmp_path / "eval")}
    settings["ckpt_path"] = str(fitted / "models" / "model.pt")
    run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **settings)
    scores = pd.read_csv(tmp_path / "eval" / "scores.csv", keep_default_na=False).set_index("case")
    assert (scores.loc[case, "dice"].astype(float) == 1).all()
    assert set(scores.loc[case, "fixed"]) == {"", "map"}
    assert "changed_at" not in scores
    assert pd.read_csv(tmp_path / "eval" / "errors.csv").set_index("kind").loc["verdicts", "labels"] == 1
    train(raw, tmp_path, fixed=str(tmp_path / "fixed"))
    features, before = (pd.read_parquet(folder / "fit" / "features.parquet") for folder in (tmp_path, fitted))
    assert not features[features["case"] == case].equals(before[before["case"] == case])
    others = (table[table["case"] != case].reset_index(drop=True) for table in (features, before))
    pd.testing.assert_frame_equal(*others)


@pytest.mark.parametrize("way", [{}, {"use_trace": True, "input_shape": [1, 1, 8, 8, 8]}], ids=["script", "trace"])
def test_export_of_the_filter_is_refused(fitted, tmp_path, way):
    files = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}
    files |= {"filepath": str(tmp_path / "model.ts"), "ckpt_file": str(fitted / "models" / "model.pt")}
    code, log = run_command("ckpt_export", net_id="network_def", **files, **way)
    assert code != 0
    assert log.count("error: the label filter measures with NumPy, which no graph of TorchScript") == 1
    assert not (tmp_path / "model.ts").exists()


@pytest.mark.parametrize("config", ["train.json", "inference.json", "agreement.json"])
def test_other_libraries_than_those_of_the_release_are_warned_of(config, tmp_path, caplog):
    bundle_workflow(BUNDLE, [config], **{"_meta_#numpy_version": "1.0", "output_dir": str(tmp_path)}).initialize()
    assert "not as released: numpy " in caplog.text


def test_folders_of_masks_are_compared_by_the_names_of_people(cohort, tmp_path):
    """TotalSegmentator names every folder of masks alike, `segmentations`."""
    for name, paths in (("labels", cohort.labels), ("truth", cohort.truth)):
        for path in paths[:2]:
            image, folder = nib.load(path), tmp_path / name / path.name.removesuffix(".nii.gz") / "segmentations"
            folder.mkdir(parents=True)
            for label in (5, 1, 2, 3):
                nib.save(
                    nib.Nifti1Image((voxels_of(image) == label).astype(np.uint8), image.affine),
                    folder / f"{ORGANS[label]}.nii.gz",
                )
    settings = {"input": str(tmp_path / "labels"), "other": str(tmp_path / "truth"), "workers": 0}
    run_bundle(BUNDLE, ["agreement.json"], **settings, output_dir=str(tmp_path / "out"))
    decisions = pd.read_csv(tmp_path / "out" / "decisions.csv")
    assert set(decisions["case"]) == {"person_0000", "person_0001"}


def test_rules_and_features_of_the_command_line_are_used(raw, tmp_path):
    train(raw, tmp_path, rule="mad", features=["asymmetry", "offset_x"], votes=1, mad_factor=5.0)
    thresholds = json.loads((tmp_path / "fit" / "thresholds.json").read_text())
    assert (thresholds["rule"], thresholds["features"], thresholds["votes"]) == ("mad", ["asymmetry", "offset_x"], 1)
    clean(raw, tmp_path / "out", tmp_path)
    decisions = pd.read_csv(tmp_path / "out" / "decisions.csv")
    assert {"asymmetry", "offset_x", "asymmetry_percentile"} <= set(decisions)
    assert "sphericity" not in decisions


def test_default_rule_is_fitted_and_cleaned_with_and_says_what_it_is(raw, cohort, tmp_path, caplog):
    run_bundle(BUNDLE, ["train.json"], dataset_dir=str(raw), output_dir=str(tmp_path / "fit"), workers=0, qc=False)
    image = nib.load(cohort.labels[3])
    array = voxels_of(image)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.where(array == 5, 0, array), image.affine), tmp_path / "in" / "liverless.nii.gz")
    settings = {"input": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "workers": 0}
    caplog.set_level("INFO")
    run_bundle(BUNDLE, ["inference.json"], ckpt_path=str(tmp_path / "fit" / "model.pt"), **settings)
    decisions = pd.read_csv(tmp_path / "out" / "decisions.csv").set_index("organ")
    assert {"relative_volume", "relative_z_percentile", "components"} <= set(decisions)
    assert decisions.loc["liver", "decision"] == "missing"
    assert (decisions["decision"] == "keep").mean() > 0.9
    fitted, used = (json.loads((tmp_path / name / "thresholds.json").read_text()) for name in ("fit", "out"))
    assert used == fitted
    version = json.loads((ROOT / "bundles" / BUNDLE / "configs" / "metadata.json").read_text())["version"]
    assert (used["rule"], used["votes"], used["subjects"], used["version"]) == ("deciles", 1, 25, version)
    assert f"thresholds {used['fingerprint']}, rule deciles, 1 of sphericity" in caplog.text
    assert "1 missing" in caplog.text


def test_fit_leaves_the_weights_of_the_bundle_alone(raw, tmp_path):
    """Each fit has the folder of its results for its weights."""
    folders = {"bundle_root": str(tmp_path), "dataset_dir": str(raw)}
    run_bundle(BUNDLE, ["train.json"], **folders, workers=0, qc=False)
    assert (tmp_path / "fit" / "model.pt").is_file()
    assert not (tmp_path / "models").exists()


def test_cleaning_without_a_fit_says_how_to_fit(raw, tmp_path):
    with pytest.raises((InputError, RuntimeError)) as error:
        clean(raw, tmp_path / "out", tmp_path)
    message = str(root_cause(error.value))
    assert message.startswith(f"{tmp_path / 'models' / 'model.pt'}: no such file")
    assert "fit them with train.json" in message
    assert "set ckpt_path" in message


def test_paper_json_is_the_papers_rule(raw, tmp_path):
    folders = {"dataset_dir": str(raw), "output_dir": str(tmp_path)}
    run_bundle(BUNDLE, ["train.json", "paper.json"], **folders, workers=0, qc=False, epsilon_percent=4)
    found = json.loads((tmp_path / "thresholds.json").read_text())
    assert found["features"] == ["normalized_volume", "sphericity", "eccentricity"]
    features = pd.read_parquet(tmp_path / "features.parquet")
    liver = features.loc[features["organ"] == "liver", "sphericity"]
    assert found["organs"]["5"]["sphericity"]["high"] == pytest.approx(liver.quantile(0.96))


def test_bad_files_do_not_stop_the_run(fitted, cohort, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(cohort.labels[0], data / "good.nii.gz")
    (data / "broken.nii.gz").write_bytes(cohort.labels[0].read_bytes()[:2000])
    noise = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), data / "image.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4)), data / "empty.nii.gz")
    with pytest.raises(SystemExit, match="3 of 4 cases failed:"):
        clean(data, tmp_path / "out", fitted)
    failed = pd.read_csv(tmp_path / "out" / "failed.csv").set_index("case")["reason"]
    assert set(failed.index) == {"broken", "image", "empty"}
    assert "cannot be read whole" in failed["broken"]
    assert "labels are 0 to 65535; give a label map, not an image." in failed["image"]
    assert "holds no labels" in failed["empty"]
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["good_cleaned.nii.gz"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon_percent": 2}, "dataset has 25 label maps, the rule percentile needs 50: give more"),
        ({"rule": "sigma"}, "rule is 'sigma': give one of"),
        ({"rejected": "remove"}, "rejected is 'remove': give one of"),
        ({"label_table": "none.json"}, "none.json: is not a label table"),
        ({"workers": -3}, "workers is -3: give a whole number from -1"),
        ({"qc": "maybe"}, "qc is 'maybe': give true or false."),
        ({"largest_component": "2"}, "largest_component is '2': give true or false."),
        ({"train#trainer#max_epochs": 7}, "max_epochs is 7: a cohort is measured once"),
    ],
)
def test_bad_settings_end_a_fit_at_its_start(raw, tmp_path, settings, message):
    with pytest.raises((InputError, RuntimeError)) as error:
        train(raw, tmp_path, **settings)
    assert isinstance(root_cause(error.value), InputError)
    assert message in str(root_cause(error.value))
    assert "--" not in str(root_cause(error.value))  # functions are called from Python too
    assert not list(tmp_path.rglob("*.parquet"))


def test_weights_of_another_label_table_are_refused(fitted, raw, tmp_path):
    table = tmp_path / "table.json"
    table.write_text(json.dumps({str(label): name for label, name in ORGANS.items() if label < 70}))
    with pytest.raises(RuntimeError) as error:
        clean(raw, tmp_path / "out", fitted, label_table=str(table))
    assert "fitted with another label table than these 69 labels; set label_table" in str(root_cause(error.value))


def test_report_opens_from_the_fit_and_from_cleaning(fitted, raw, tmp_path):
    train(raw, tmp_path, qc=True)
    assert (tmp_path / "fit" / "qc" / "index.html").is_file()
    clean(raw, tmp_path / "out", fitted, qc="true")
    assert len(list((tmp_path / "out" / "qc" / "data").glob("slices-*.js"))) > 3


def test_covariates_are_used_by_fit_cleaning_evaluator_and_evaluation(raw, cohort, tmp_path):
    names = sorted(path.name.removesuffix(".nii.gz") for path in raw.iterdir())
    table = pd.DataFrame({"case": names, "age": np.arange(25) * 1.7 + 40, "note": "x"})
    table.iloc[:24].to_csv(tmp_path / "cov.csv", index=False)
    given = {"covariates": str(tmp_path / "cov.csv")}
    train(raw, tmp_path, rule="deciles", covariate_columns=["age"], **given)
    clean(raw, tmp_path / "run", tmp_path, **given)
    decisions = pd.read_csv(tmp_path / "run" / "decisions.csv")
    assert decisions.groupby("case")["covariates"].first().tolist() == ["used"] * 24 + ["no row"]
    folders = {"input": str(raw), "ckpt_path": str(tmp_path / "models" / "model.pt"), **given}
    workflow = bundle_workflow(BUNDLE, ["inference.json"], kind="infer", output_dir=str(tmp_path / "own"), **folders)
    workflow.initialize()
    workflow.evaluator.run()
    for path in sorted((tmp_path / "run").glob("*_cleaned.nii.gz")):
        assert filecmp.cmp(path, tmp_path / "own" / path.name, shallow=False)
    cohort.errors.to_csv(tmp_path / "errors.csv", index=False)
    errors = {"known_errors": str(tmp_path / "errors.csv"), "output_dir": str(tmp_path / "eval")}
    run_bundle(BUNDLE, ["inference.json", "evaluate.json"], **folders, **errors)
    scores = pd.read_csv(tmp_path / "eval" / "scores.csv")
    both = scores.merge(decisions, on=["case", "label"], suffixes=("", "_run"))
    assert both["decision"].tolist() == both["decision_run"].tolist()
    with pytest.raises(RuntimeError) as caught:
        clean(raw, tmp_path / "without", tmp_path)
    assert "was fitted with the covariates age: set covariates to a CSV" in str(root_cause(caught.value))
