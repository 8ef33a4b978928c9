"""Functions and commands of `monai.bundle` in processes that know nothing of this repository."""

import functools
import http.server
import re
import shutil
import threading

import pytest

from tests.clients.bundles import assert_same_label_map, copy_bundle, own_run, write_weights
from tests.clients.programs import PROJECT_PYTHON, run
from tests.conftest import ROOT

BTCV, BRATS = "swin_bob_btcv", "swin_bob_brats"
LOAD = """
import sys, torch
from monai.bundle import load
folder, name = sys.argv[1:3]
network = load(name, bundle_dir=folder, workflow_type="inference", source="github")
stored = torch.load(f"{folder}/{name}/models/model.pt", weights_only=True)
state = network.state_dict()
assert all(torch.equal(state[key], value) for key, value in stored.items() if key in state), "other weights"
print("LOADED", type(network).__name__)
"""
CHECK = """
import sys
from monai.bundle import create_workflow
kind, config = sys.argv[1:3]
workflow = create_workflow(config_file=config, workflow_type=kind, input=sys.argv[3], output_dir=sys.argv[4])
assert workflow.check_properties() == [], workflow.check_properties()
print("CREATED", type(workflow.network_def).__name__)
"""
ON_PATH = "import sys; sys.path.insert(0, sys.argv[1] + '/' + sys.argv[2])"


@pytest.fixture(scope="module")
def address(packed, tmp_path_factory):
    """Address of a web server with the packed bundles, weights included."""
    folder = tmp_path_factory.mktemp("web")
    for name in (BTCV, BRATS):
        shutil.make_archive(str(folder / f"{name}_v0.2.0"), "zip", root_dir=packed, base_dir=name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_downloaded_bundle_segments_as_the_packed_one(address, packed, torso, tmp_path):
    arguments = ["--name", BTCV, "--url", f"{address}/{BTCV}_v0.2.0.zip", "--bundle_dir", tmp_path / "got"]
    run(PROJECT_PYTHON, "-m", "monai.bundle", "download", *arguments, cwd=tmp_path)
    expected = own_run(packed / BTCV, torso, tmp_path / "own")
    assert_same_label_map(own_run(tmp_path / "got" / BTCV, torso, tmp_path / "out"), expected)


@pytest.mark.parametrize("name", [BTCV, BRATS])
def test_bundle_loads_with_its_folder_on_the_path(packed, tmp_path, name):
    assert "LOADED SwinUNETR" in run(PROJECT_PYTHON, "-c", ON_PATH + LOAD, packed, name, cwd=tmp_path)


def test_call_of_the_docs_loads_the_network(packed, tmp_path):
    text = (ROOT / "bundles" / BTCV / "docs" / "evidence.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("BUNDLES", str(packed)) + "print(type(network).__name__)"
    assert "SwinUNETR" in run(PROJECT_PYTHON, "-c", code, cwd=tmp_path)


def test_workflow_is_created_from_the_path_of_its_config(packed, torso, tmp_path):
    config = packed / BTCV / "configs" / "inference.json"
    arguments = ["infer", config, torso, tmp_path / "out"]
    output = run(PROJECT_PYTHON, "-c", CHECK, *arguments, cwd=tmp_path, PYTHONPATH=str(packed / BTCV))
    assert "CREATED SwinUNETR" in output


def test_scripts_of_another_bundle_are_noticed(packed, torso, tmp_path):
    """The folder of a bundle of another version is the working folder, and so comes first on the path."""
    other = copy_bundle(packed / BRATS, tmp_path)
    shutil.copytree(packed / BTCV / "scripts", other / "scripts", dirs_exist_ok=True)
    bundle, config = packed / BTCV, packed / BTCV / "configs" / "inference.json"
    arguments = ["--config_file", config, "--bundle_root", bundle, "--input", torso, "--output_dir", tmp_path / "out"]
    output = run(PROJECT_PYTHON, "-m", "monai.bundle", "run", *arguments, cwd=other, code=1)
    assert str(other / "scripts") in output.strip().splitlines()[-1]


def test_load_refuses_legacy_weights_for_a_network_of_the_other_merging(packed, tmp_path):
    write_weights(copy_bundle(packed / BTCV, tmp_path), seed=5, legacy_merging=True)
    output = run(PROJECT_PYTHON, "-c", ON_PATH + LOAD, tmp_path, BTCV, cwd=tmp_path, code=1)
    assert "set legacy_merging to true" in output


@pytest.mark.parametrize("name", [BTCV, BRATS])
def test_network_fits_the_metadata(packed, tmp_path, name):
    bundle = packed / name
    arguments = ["--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json"]
    run(PROJECT_PYTHON, "-m", "monai.bundle", "verify_net_in_out", "network_def", *arguments, cwd=bundle)
