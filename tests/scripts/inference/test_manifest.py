import hashlib
import json
import sys
from importlib.metadata import version

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor

from scripts.common.errors import InputError
from scripts.inference.evaluator import CaseEvaluator
from scripts.inference.manifest import RunManifest

METADATA = {"name": "Test bundle", "version": "1.2.3"}


def load(item):
    image = MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": str(item["image"])})
    return {**item, "image": image}


def run(folder, cases, *, fail_at=None):
    """Run an evaluator over cases of one file each, and return its record."""
    weights = folder / "model.pt"
    weights.write_bytes(b"weights")
    items = []
    for case in cases:
        (folder / f"{case}.nii.gz").write_bytes(case.encode())
        items.append({"image": str(folder / f"{case}.nii.gz"), "case": case})
    manifest = RunManifest(folder / "out", metadata=METADATA, ckpt_path=weights)
    evaluator = CaseEvaluator(
        output_dir=folder / "out",
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, load), batch_size=1),
        network=torch.nn.Identity(),
        val_handlers=[manifest],
    )
    if fail_at is not None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=fail_at), stop)
    evaluator.run()
    return json.loads((folder / "out" / "run.json").read_text())


def stop():
    raise KeyboardInterrupt


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_record_names_bundle_weights_libraries_and_inputs(tmp_path):
    (record,) = run(tmp_path, ["one", "two"])["runs"]
    assert (record["bundle"], record["version"], record["device"]) == ("Test bundle", "1.2.3", "cpu")
    assert record["weights"] == {"file": str(tmp_path / "model.pt"), "sha256": sha256(b"weights")}
    assert record["libraries"] == {name: version(name) for name in ("monai", "torch")}
    assert record["cases"] == {
        name: {str(tmp_path / f"{name}.nii.gz"): sha256(name.encode())} for name in ("one", "two")
    }
    assert record["started"] <= record["finished"]


def test_second_run_into_the_folder_keeps_the_record_of_the_first(tmp_path):
    run(tmp_path, ["one"])
    first, second = run(tmp_path, ["two"])["runs"]
    assert (list(first["cases"]), list(second["cases"])) == (["one"], ["two"])


def test_stopped_run_leaves_the_cases_that_it_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["one", "two", "three"], fail_at=2)
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["runs"]
    assert record["finished"] is None
    assert list(record["cases"]) == ["one", "two"]


def test_settings_of_the_command_line_are_recorded(tmp_path, monkeypatch):
    program = ["/x/monai/bundle/__main__.py", "run", "--config_file", "configs/inference.json", "--sw_overlap", "0.25"]
    monkeypatch.setattr(sys, "argv", program)
    (record,) = run(tmp_path, ["one"])["runs"]
    assert record["settings"] == {"config_file": "configs/inference.json", "sw_overlap": 0.25}


def test_foreign_run_json_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("[1]")
    with pytest.raises(InputError, match=r"run.json: is not the record of earlier runs .*; move it away\."):
        run(tmp_path, ["one"])
