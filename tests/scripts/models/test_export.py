import json
import logging

import pytest
import torch
from monai.data import load_net_with_metadata

from scripts.models import export
from scripts.models.compiled import CompiledNetwork
from scripts.models.export import main
from tests.scripts.models.tiny_networks import TINY_NETWORK, saved, state_of, tiny

SIZE = [64, 64, 64]


@pytest.fixture
def bundle(tmp_path):
    definition = {"_target_": "SwinUNETR", **TINY_NETWORK}
    merging = {"_target_": "scripts.models.swin_unetr.patch_merging", "legacy": False}
    config = {"patch_size": SIZE, "network_def": {**definition, "downsample": merging}}
    metadata = {"version": "1.0.0", "network_data_format": {"inputs": {"image": {"channel_def": {"0": "image"}}}}}
    for name, content in {"inference": config, "metadata": metadata}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    saved(tmp_path / "model.pt", state_of())
    return tmp_path


def run(bundle, target="model.ts", *settings):
    return main([*(str(bundle / name) for name in ("inference.json", "model.pt", target)), *settings])


def test_exported_network_predicts_the_same_and_refuses_other_sizes(bundle):
    assert run(bundle) == 0
    network, metadata, _ = load_net_with_metadata(str(bundle / "model.ts"))
    assert metadata["version"] == "1.0.0"
    image = torch.rand(2, 1, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network(image), tiny()(image), rtol=1e-4, atol=1e-4)
        for shape in ((1, 1, 96, 64, 64), (1, 1, 64, 64, 96), (1, 2, 64, 64, 64)):
            with pytest.raises(torch.jit.Error, match="give windows of patch_size"):
                network(torch.rand(shape))


def test_weights_of_another_network_are_refused(bundle, caplog):
    saved(bundle / "model.pt", state_of(feature_size=24))
    assert run(bundle) == 2
    assert "weights of another network" in caplog.records[-1].message
    assert not (bundle / "model.ts").exists()


def test_network_without_windows_is_refused(bundle, caplog):
    config = json.loads((bundle / "inference.json").read_text())
    del config["patch_size"]
    (bundle / "inference.json").write_text(json.dumps(config))
    assert run(bundle) == 2
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.message.endswith("inference.json: has no patch_size; only networks of windows are exported.")


def test_compiled_network_is_compared_and_takes_settings(bundle, caplog):
    caplog.set_level(logging.INFO)
    assert run(bundle, "model.ov", "--patch_size", "[64,32,32]") == 0
    assert CompiledNetwork(bundle / "model.ov").window == (1, 64, 32, 32)
    assert "the logits differ by at most" in caplog.text


def test_wrong_graph_and_wrong_arguments_are_refused(bundle, caplog, monkeypatch):
    monkeypatch.setattr(export, "export_compiled", lambda *_: tiny(seed=1))
    assert run(bundle, "model.ov") == 2
    assert "it cannot be exported" in caplog.records[-1].message
    assert run(bundle, "model.onnx") == 2
    assert "give a path that ends in .ts (TorchScript) or .ov (OpenVINO)" in caplog.records[-1].message
    assert run(bundle, "model.ov", "--patch_siz", "[64,64,64]") == 2
    assert "did you mean --patch_size" in caplog.records[-1].message
    assert not (bundle / "model.ov").exists()
