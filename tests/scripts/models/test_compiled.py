import json
import subprocess
import sys
import warnings

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.common.errors import InputError
from scripts.models import compiled
from scripts.models.compiled import CompiledNetwork, export_compiled
from scripts.models.weight_files import read_file
from scripts.models.weights import load_weights
from tests.conftest import ROOT
from tests.scripts.models.tiny_networks import saved, state_of, tiny

SIZE = (64, 32, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    weights = saved(folder / "model.pt", state_of())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy in MONAI while it is traced
        export_compiled(tiny(), torch.rand(1, 1, *SIZE), weights, folder / "model.ov")
    return folder


@pytest.fixture
def graph(files):
    return CompiledNetwork(files / "model.ov")


def test_compiled_network_predicts_each_window_of_a_batch_as_the_network_does(graph):
    windows = torch.rand(3, 1, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(graph(windows), tiny()(windows), rtol=1e-3, atol=1e-3)


def test_bfloat16_is_used_only_where_asked_for(files, graph):
    """OpenVINO itself takes it where the processor has it; where not, both predict the same."""
    window = torch.rand(1, 1, *SIZE)
    torch.testing.assert_close(
        CompiledNetwork(files / "model.ov", precision="bf16")(window), graph(window), rtol=0.1, atol=0.1
    )
    with pytest.raises(InputError, match="cpu_precision 'fp8': give one of f32, bf16"):
        CompiledNetwork(files / "model.ov", precision="fp8")


def test_windows_of_another_size_are_refused(graph):
    for shape in ((1, 1, 32, 32, 32), (1, 2, *SIZE)):
        with pytest.raises(
            InputError, match=r"exported for windows of 1x64x32x32, not .* patch_size to \[64, 32, 32\]"
        ):
            graph(torch.rand(shape))


def test_weights_that_it_was_not_exported_from_are_refused(files, graph, tmp_path):
    load_weights(graph, files / "model.pt")
    with pytest.raises(InputError, match=r"model.ov: not exported from .*other.pt; export it again"):
        load_weights(graph, saved(tmp_path / "other.pt", state_of(seed=1)))
    with pytest.raises(InputError, match=r"none\.pt: cannot be read"):
        load_weights(graph, tmp_path / "none.pt")


def damaged(**changes):
    return lambda content: {**content, **changes}


DAMAGES = {
    "no dictionary": (lambda _: [1], "is not a compiled network"),
    "weights": (lambda _: state_of(), "is not a compiled network"),
    "window": (damaged(window=["64", 64, 64, 64]), "is not a compiled network"),
    "floats": (damaged(xml=torch.rand(9)), "is not a compiled network"),
    "another window": (damaged(window=[1, 32, 32, 32]), "its graph has inputs of"),
    "not XML": (damaged(xml=torch.zeros(99, dtype=torch.uint8)), "OpenVINO cannot read it"),
    "too few values": (damaged(values=torch.zeros(9, dtype=torch.uint8)), "OpenVINO cannot read it"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused(name, files, tmp_path):
    change, message = DAMAGES[name]
    path = saved(tmp_path / "model.ov", change(read_file(files / "model.ov")))
    with pytest.raises(InputError, match=message):
        CompiledNetwork(path)


def test_missing_file_and_missing_openvino_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"model.ov: no such file; write it: python -m scripts.export_weights"):
        CompiledNetwork(tmp_path / "model.ov")

    def missing(_):
        raise ImportError

    monkeypatch.setattr(compiled, "import_module", missing)
    with pytest.raises(InputError, match="pip install openvino, or leave that config out"):
        CompiledNetwork(tmp_path / "model.ov")


def test_conversion_reports_nothing_to_anyone():
    """In a process of its own, as another test may have imported OpenVINO with its telemetry."""
    code = """
from scripts.models.compiled import _openvino
_openvino()
from openvino.tools.ovc import convert_impl, telemetry_utils
assert {part.tm.__name__ for part in (convert_impl, telemetry_utils)} == {"openvino.tools.ovc.telemetry_stub"}
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_overlay_makes_the_compiled_network(files):
    from tests.bundles.test_contract import BUNDLES

    for bundle in BUNDLES:
        if (bundle / "configs" / "inference_cpu.json").is_file():
            overlay = json.loads((bundle / "configs" / "inference_cpu.json").read_text())
            parser = ConfigParser({"bundle_root": "", **overlay, "cpu_graph": str(files / "model.ov")})
            assert isinstance(parser.get_parsed_content("network"), CompiledNetwork)
