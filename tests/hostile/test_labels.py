"""Bad labels, sequences and classes: refused with the file, the value and the fix, also without `check_data`."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from scripts.brats.sequences import SEQUENCES
from scripts.common.errors import reason
from tests.conftest import ROOT, TINY, bundle_workflow, command_line, run_bundle, training_settings
from tests.scripts.io.volume_files import BAD_FILES

BTCV, BRATS = "swin_bob_btcv", "swin_bob_brats"
SIZES = {"patch_size": [64, 32, 32], "spacing_mm": [4.0, 4.0, 4.0]}
SHAPE = (24, 20, 18)
AFFINE = np.array([[-3.0, 0.2, 0, 40], [0.2, 3.0, 0, -30], [0, 0, 4.0, 10], [0, 0, 0, 1]])
BODY = (slice(3, 20), slice(4, 16), slice(3, 15))


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def changed(array=lambda a: a, affine=lambda m: m):
    """Make a function that changes the voxels or the affine of a file."""

    def change(path):
        image = nib.load(path)
        save(path, array(np.asarray(image.dataobj).copy()), affine(image.affine))

    return change


def with_value(value, dtype):
    """Make a function that replaces the highest class of a label."""

    def put(label):
        return np.where(label == label.max(), dtype(value), label.astype(dtype))

    return changed(put)


def shifted(mm):
    return changed(affine=lambda affine: affine + np.eye(4, k=3) * [[mm], [0], [0], [0]])


BAD_GRIDS = {
    "shorter": (changed(lambda a: a[:-2]), "does not lie on the grid of its image: shape 22 x 20 x 18 instead of 24 x"),
    "tiny": (changed(lambda a: a[:2, :2, :2]), "does not lie on the grid of its image: shape 2 x 2 x 2 instead of 24"),
    "padded": (changed(lambda a: np.pad(a, 3)), "does not lie on the grid of its image: shape 30 x 26 x 24 instead of"),
    "permuted": (changed(np.transpose), "does not lie on the grid of its image: shape 18 x 20 x 24 instead of 24 x 20"),
    "shifted": (shifted(5), "does not lie on the grid of its image: centre 5.0 mm away; resample it to that grid"),
    "mirrored": (changed(affine=lambda m: m @ np.diag([-1, 1, 1, 1])), "axes RAS instead of LAS"),
    "no affine": (changed(affine=lambda m: np.eye(4)), "spacing 1 x 1 x 1 instead of 3.007 x 3.007 x 4 mm, axes RAS"),
}
BAD_VALUES = {
    "negative": (with_value(-1, np.int16), "label values -1 are outside 0"),
    "half": (with_value(0.5, np.float32), "label values 0.5 are not whole numbers"),
    "almost": (with_value(2.001, np.float32), "label values 2.000999928 are not whole numbers"),
    "NaN": (with_value(np.nan, np.float32), "label values nan are not whole numbers"),
    "infinite": (with_value(np.inf, np.float32), "label values inf are outside 0"),
    "huge": (with_value(2**30, np.int32), "label values 1073741824 are outside 0"),
    "image": (changed(lambda a: np.arange(a.size).reshape(a.shape).astype(np.int16)), ", ... are outside 0"),
}
BAD_CLASSES = {
    BTCV: {
        "14": (with_value(14, np.uint8), "label values 14 are outside 0..13"),
        "255": (with_value(255, np.uint8), "label values 255 are outside 0..13"),
    },
    BRATS: {
        "7": (with_value(7, np.uint8), "label values 7 are outside 0, 1, 2, 3, and 7 are outside 0, 1, 2, 4"),
        "3 and 4": (
            changed(lambda a: np.where(a == 1, 4, a).astype(np.uint8)),
            "label values 4 are outside 0, 1, 2, 3, and 3 are outside 0, 1, 2, 4",
        ),
    },
}


def bad_labels(bundle):
    """Return name to a function that spoils a label and a part of the message."""
    files = {f"file {n}": (change, message) for n, (message, change) in enumerate(BAD_FILES.items())}
    return {**BAD_CLASSES[bundle], **BAD_VALUES, **BAD_GRIDS, **files}


def write_case(root, name, bundle):
    """Write an image of one or four files and its label with three classes; return the item of a datalist."""
    rng = np.random.default_rng(sum(name.encode()))
    label = np.zeros(SHAPE, np.uint8)
    label[BODY] = 2
    label[6:12, 6:12, 5:11], label[8:10, 8:10, 7:9] = 1, 3
    save(root / f"{name}-seg.nii.gz", label)
    files = [f"{name}.nii.gz"] if bundle == BTCV else [f"{name}-{kind}.nii.gz" for kind in SEQUENCES]
    for file in files:
        image = np.full(SHAPE, -1000 if bundle == BTCV else 0, np.int16)
        image[BODY] = rng.integers(10, 200, image[BODY].shape)
        save(root / file, image)
    return {"image": files[0] if bundle == BTCV else files, "label": f"{name}-seg.nii.gz"}


def write_data(root, bundle, *, bad=(), **sections):
    """Write a data set; cases are named by their number in each section, and those in `bad` after what is wrong."""
    table = bad_labels(bundle)
    lists = {name: [write_case(root, f"{name}{n}", bundle) for n in range(count)] for name, count in sections.items()}
    section = next(reversed(sections))
    for number, kind in enumerate(bad):
        item = write_case(root, f"bad{number:02d}", bundle)
        table[kind][0](root / item["label"])
        lists[section].append(item)
    (root / "dataset_0.json").write_text(json.dumps(lists))
    return root


def settings_of(root, out, **more):
    return training_settings(root, out, **{**SIZES, "max_epochs": 1, "check_data": False, **more})


@pytest.fixture(scope="module")
def ckpt_paths(tmp_path_factory):
    """Random weights of both bundles."""
    folder = tmp_path_factory.mktemp("weights")
    for bundle in (BTCV, BRATS):
        torch.manual_seed(0)
        workflow = bundle_workflow(bundle, ["inference.json"], kind="infer", **TINY)
        workflow.initialize()
        torch.save(workflow.network_def.state_dict(), folder / f"{bundle}.pt")
    return {bundle: str(folder / f"{bundle}.pt") for bundle in (BTCV, BRATS)}


def refused(run, *arguments, **settings):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(*arguments, **settings)
    return reason(caught.value)


def failed_cases(folder):
    with (folder / "failed.csv").open(newline="", encoding="utf-8") as file:
        return {row["case"]: row["reason"] for row in csv.DictReader(file)}


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp")]


# Training


@pytest.mark.parametrize("bundle", [BTCV, BRATS])
def test_check_lists_all_bad_labels_in_one_message(bundle, tmp_path):
    table = bad_labels(bundle)
    data = write_data(tmp_path / "data", bundle, bad=table, training=2, validation=1)
    with pytest.raises(RuntimeError) as caught:
        run_bundle(bundle, ["train.json"], **settings_of(data, tmp_path, check_data=True))
    lines = str(caught.value.__cause__).splitlines()
    assert lines[0].endswith("leave the cases out of the datalist, or set check_data to false")
    for number, (kind, (_, message)) in enumerate(table.items()):
        found = [line for line in lines if line.startswith(f"{data}/bad{number:02d}-seg.nii.gz: ")]
        assert found, kind
        assert message in found[0]
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("bundle", "section", "kind"),
    [
        (BTCV, "training", "14"),
        (BTCV, "validation", "half"),
        (BRATS, "training", "shifted"),
        pytest.param(BRATS, "validation", "3 and 4", marks=pytest.mark.hostile),
    ],
)
def test_training_refuses_a_bad_label_that_was_not_checked(bundle, section, kind, tmp_path):
    """Formerly an error of torch in training, and nothing at all in validation."""
    sections = {name: 1 for name in ("training", "validation") if name != section} | {section: 0}
    data = write_data(tmp_path / "data", bundle, bad=[kind], **sections)
    said = refused(run_bundle, bundle, ["train.json"], **settings_of(data, tmp_path, num_workers=1))
    assert said.startswith(f"{data}/bad00-seg.nii.gz: ")
    assert bad_labels(bundle)[kind][1] in said
    assert said.endswith("; correct the label or leave out the case")
    assert not (tmp_path / "models").exists()


def test_ignored_voxels_are_accepted_in_training_alone(tmp_path):
    data = write_data(tmp_path / "data", BTCV, bad=["255"], training=0)
    content = json.loads((data / "dataset_0.json").read_text())
    content["validation"] = [write_case(data, "validation0", BTCV)]
    BAD_CLASSES[BTCV]["255"][0](data / "validation0-seg.nii.gz")
    (data / "dataset_0.json").write_text(json.dumps(content))
    settings = settings_of(data, tmp_path, dataset="plain")
    workflow = bundle_workflow(BTCV, ["train.json", "cleaned_labels.json"], kind="train", **settings)
    workflow.initialize()
    dataset = {name: workflow.parser.get_parsed_content(f"{name}#dataset") for name in ("train", "validate")}
    assert dataset["train"][0][0]["label"].max() == 255
    assert "validation0-seg.nii.gz: label values 255 are outside 0..13" in refused(dataset["validate"].__getitem__, 0)


@pytest.mark.parametrize("value", [5, "255", 2.5])
def test_ignored_label_that_is_a_class_or_no_number_is_refused(value, tmp_path):
    data = write_data(tmp_path / "data", BTCV, training=1, validation=1)
    settings = settings_of(data, tmp_path, ignored_label=value)
    said = refused(run_bundle, BTCV, ["train.json", "cleaned_labels.json"], **settings)
    assert said == f"ignored_label is {value!r}; give a whole number that is none of the classes"


# Evaluation


@pytest.mark.parametrize("bundle", [BTCV, BRATS])
def test_evaluation_fails_bad_labels_by_name_and_scores_the_others(bundle, ckpt_paths, tmp_path):
    table = bad_labels(bundle)
    if bundle == BRATS:
        table = {kind: table[kind] for kind in (*BAD_CLASSES[BRATS], "NaN", "shifted", "file 0")}
    data = write_data(tmp_path / "data", bundle, bad=table, test=2)
    settings = settings_of(data, tmp_path, ckpt_path=ckpt_paths[bundle], eval_split="test")
    with pytest.raises(SystemExit, match=rf"^{len(table)} of {len(table) + 2} cases failed:\n  bad00: "):
        run_bundle(bundle, ["train.json", "evaluate.json"], kind="train", **settings)
    out = tmp_path / "runs"
    found = failed_cases(out)
    assert [*found] == [f"bad{number:02d}" for number in range(len(table))]
    for why, (_, message) in zip(found.values(), table.values(), strict=True):
        assert message in why
    assert sorted(pd.read_csv(out / "scores.csv")["case"].unique()) == ["test0", "test1"]
    assert sorted(path.name for path in out.glob("*_seg.nii.gz")) == ["test0_seg.nii.gz", "test1_seg.nii.gz"]
    assert leftovers(tmp_path) == []


def without_labels(data):
    content = json.loads((data / "dataset_0.json").read_text())
    content["test"][1:] = [item["image"] for item in content["test"][1:]]
    (data / "dataset_0.json").write_text(json.dumps(content))


def twice(data):
    content = json.loads((data / "dataset_0.json").read_text())
    content["test"].append(content["test"][0])
    (data / "dataset_0.json").write_text(json.dumps(content))


BAD_EVALUATIONS = {
    "no labels": (without_labels, {}, "dataset_0.json, test: 1 problem; these cases cannot be scored; add labels"),
    "a case twice": (twice, {}, "test0.nii.gz: 2 times in test"),
    "empty section": (lambda data: None, {"eval_split": "validation"}, "dataset_0.json: no validation cases"),
    "unknown section": (lambda data: None, {"eval_split": "tests"}, "required lists unknown sections ['tests']"),
    "negative tolerance": (lambda data: None, {"surface_tolerance_mm": -1}, "tolerance_mm is -1: give a finite"),
    "tolerance as text": (lambda data: None, {"surface_tolerance_mm": "2 mm"}, "tolerance_mm is '2 mm': give a finite"),
}


@pytest.mark.parametrize("kind", BAD_EVALUATIONS)
def test_evaluation_is_refused_before_the_first_case(kind, ckpt_paths, tmp_path):
    change, more, message = BAD_EVALUATIONS[kind]
    data = write_data(tmp_path / "data", BTCV, test=2)
    change(data)
    settings = settings_of(data, tmp_path, ckpt_path=ckpt_paths[BTCV], **{"eval_split": "test", **more})
    assert message in refused(run_bundle, BTCV, ["train.json", "evaluate.json"], kind="train", **settings)
    assert not list(tmp_path.rglob("*_seg.nii.gz"))


# Sequences


def save_like(path, other):
    shutil.copyfile(path.with_name(path.name.replace("t2f", other)), path)


BAD_SEQUENCES = {
    "away": (shifted(1000), "not all sequences show the region that it shows: t2f shares 0% of the smaller field of"),
    "half away": (shifted(40), "t2f shares 42% of the smaller field of view, need 50%. Correct their headers, or give"),
    "copy": (lambda path: save_like(path, "t1n"), "holds the same voxels as "),
    "constant": (changed(lambda a: 0 * a + 3), "is constant, every voxel is 3; this is not an image"),
    "missing": (lambda path: path.unlink(), ": t2f missing beside missing-t1n.nii.gz: give t1n, t1c, t2w, t2f."),
    "NaN": (changed(lambda a: np.where(a > 0, np.nan, a)), "holds NaN or infinite voxels"),
    "both names": (
        lambda path: shutil.copy(path, path.with_name("both names_flair.nii.gz")),
        ": 2 files for t2f (both names-t2f.nii.gz, both names_flair.nii.gz): keep one.",
    ),
    "bad label": (
        lambda path: with_value(7, np.uint8)(path.with_name("bad label-seg.nii.gz")),
        "segmented, but not drawn: ",
    ),
}


def test_bad_sequences_fail_their_case_and_the_others_are_segmented(ckpt_paths, tmp_path, caplog):
    for name in ("two labels", "other grid", *BAD_SEQUENCES):
        write_case(tmp_path / "in" / name, name, BRATS)
    for name, (change, _) in BAD_SEQUENCES.items():
        change(tmp_path / "in" / name / f"{name}-t2f.nii.gz")
    shifted(20)(tmp_path / "in" / "other grid" / "other grid-t2f.nii.gz")
    (tmp_path / "in" / "two labels" / "two labels_seg.nii").touch()
    settings = {**TINY, **SIZES, "input": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(SystemExit, match=rf"^{len(BAD_SEQUENCES)} of {len(BAD_SEQUENCES) + 2} cases failed:\n"):
        run_bundle(BRATS, ["inference.json"], **settings, ckpt_path=ckpt_paths[BRATS], resample=True)
    found = failed_cases(tmp_path / "out")
    assert {name for name, (_, message) in BAD_SEQUENCES.items() if message not in found.pop(name, "")} == set()
    assert found == {}
    names = {path.name for path in (tmp_path / "out").glob("*_seg.nii.gz")}
    assert names == {f"{name}_seg.nii.gz" for name in ("other grid", "two labels", "bad label")}
    log = "\n".join(caplog.messages)
    assert re.search(r"other grid-t1c.nii.gz: resampled all .*; each covers at least 70 % of it", log)
    assert "two labels: 2 files for seg (two labels-seg.nii.gz, two labels_seg.nii): none is used; keep one" in log
    assert leftovers(tmp_path) == []


def test_sequences_of_two_patients_are_refused_by_name(tmp_path):
    data = write_data(tmp_path / "data", BRATS, training=1, validation=1)
    content = json.loads((data / "dataset_0.json").read_text())
    for n, path in enumerate(content["training"][0]["image"]):
        content["training"][0]["image"][n] = f"BraTS-GLI-0000{n // 3}-000-{SEQUENCES[n]}.nii.gz"
        (data / path).rename(data / content["training"][0]["image"][n])
    (data / "dataset_0.json").write_text(json.dumps(content))
    said = refused(run_bundle, BRATS, ["train.json"], **settings_of(data, tmp_path))
    assert said == f"{data}: sequences of BraTS-GLI-00000-000 and BraTS-GLI-00001-000: give those of one case."


@pytest.mark.parametrize("value", [-1, 0, 2, 5, "3", 3.0, True, None])
def test_enhancing_label_is_3_or_4(value, ckpt_paths, tmp_path):
    settings = {**TINY, **SIZES, "input": str(tmp_path), "output_dir": str(tmp_path / "out")}
    write_case(tmp_path, "p1", BRATS)
    settings |= {"ckpt_path": ckpt_paths[BRATS], "enhancing_label": value}
    said = refused(run_bundle, BRATS, ["inference.json"], **settings)
    assert said == f"enhancing_label is {value!r}: give 3 (BraTS 2023) or 4 (the years before)."
    assert not list(tmp_path.rglob("*_seg.nii.gz*"))


# The program


def run_program(bundle, *arguments, launcher=("-m", "monai.bundle"), **settings):
    return subprocess.run(
        [sys.executable, *launcher, "run", *arguments, *command_line(settings)],
        cwd=ROOT / "bundles" / bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


TRAIN = ("training", "--config_file", "configs/train.json")
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "monai.bundle")


@pytest.mark.hostile
@pytest.mark.parametrize("bundle", [BTCV, BRATS])
@pytest.mark.parametrize("kind", ["NaN", "shifted"])
def test_program_ends_with_one_message(bundle, kind, tmp_path):
    data = write_data(tmp_path / "data", bundle, bad=[kind], validation=1, training=1)
    done = run_program(bundle, *TRAIN, **settings_of(data, tmp_path, num_workers=2))
    assert done.returncode == 1
    assert f"\nerror: {data}/bad00-seg.nii.gz: {bad_labels(bundle)[kind][1]}" in done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.hostile
@pytest.mark.parametrize("section", ["training", "validation"])
def test_two_ranks_end_if_one_refuses_its_case(section, tmp_path):
    """The rank that refuses it ends, torchrun ends the other one, and nothing waits for a message of a lost rank."""
    sections = {name: 2 for name in ("training", "validation") if name != section} | {section: 1}
    data = write_data(tmp_path / "data", BTCV, bad=["half"], **sections)
    configs = "['configs/train.json','configs/multi_gpu_train.json']"
    arguments = ("training", "--config_file", configs)
    done = run_program(BTCV, *arguments, launcher=TWO_RANKS, **settings_of(data, tmp_path))
    assert done.returncode == 1
    assert f"error: {data}/bad00-seg.nii.gz: label values 0.5 are not whole numbers" in done.stderr


@pytest.mark.hostile
def test_two_ranks_score_the_others_if_one_has_no_sound_case(ckpt_paths, tmp_path):
    """Formerly the other rank waited for the buffers of the network, which rank 0 sends before each forward pass."""
    data = write_data(tmp_path / "data", BTCV, bad=["14", "half"], test=2)
    content = json.loads((data / "dataset_0.json").read_text())
    content["test"] = [content["test"][n] for n in (2, 0, 3, 1)]  # rank 0 takes the first and the third
    (data / "dataset_0.json").write_text(json.dumps(content))
    configs = [f"configs/{name}.json" for name in ("train", "evaluate", "multi_gpu_train")]
    settings = settings_of(data, tmp_path, ckpt_path=ckpt_paths[BTCV], eval_split="test")
    done = run_program(BTCV, "--config_file", str(configs).replace(" ", ""), launcher=TWO_RANKS, **settings)
    assert done.returncode == 1
    assert "2 of 4 cases failed:" in done.stderr
    assert [*failed_cases(tmp_path / "runs")] == ["bad00", "bad01"]
    assert sorted(pd.read_csv(Path(tmp_path / "runs" / "scores.csv"))["case"].unique()) == ["test0", "test1"]
