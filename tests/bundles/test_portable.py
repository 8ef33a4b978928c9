"""configs/inference_portable.json of swin_bob_btcv, which needs nothing of `scripts`."""

import os
import shutil
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.conftest import ROOT, TINY, run_bundle
from tools.pack import pack

BUNDLE = ROOT / "bundles" / "swin_bob_btcv"
RUN = """
import sys
from monai.bundle import ConfigWorkflow
config = "configs/inference_portable.json"
workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **{settings!r})
workflow.initialize()
assert workflow.check_properties() == []
workflow.run()
workflow.finalize()
assert "scripts" not in sys.modules
loaded, given = workflow.network_def.state_dict(), workflow.parser.get_parsed_content("state")
assert all(loaded[name].equal(given[name]) for name in loaded)
assert {{name.split(".")[-1] for name in given.keys() - loaded.keys()}} == {{"slice_offsets"}}
"""


def some_weights(path, *, legacy=False):
    """Write weights by chance of a network of inference.json."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.update({**TINY, "legacy_merging": legacy})
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return str(path)


def test_packed_bundle_gives_the_same_labels_after_its_scripts_were_deleted(torso_data, tmp_path):
    with zipfile.ZipFile(pack(BUNDLE, tmp_path)) as zipped:
        zipped.extractall(tmp_path)
    base = tmp_path / BUNDLE.name
    shutil.rmtree(base / "scripts")
    settings = {**TINY, "ckpt_path": some_weights(tmp_path / "model.pt"), "dataset_dir": str(torso_data / "imagesTs")}
    settings["spacing_mm"] = [5.3, 5.3, 6.7]  # no voxel lies exactly on the edge of the crop, see RestoreLabelMapd
    code = RUN.format(settings=settings)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=base, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    settings["input"] = settings.pop("dataset_dir")
    run_bundle(BUNDLE.name, ["inference.json"], kind="infer", **settings, output_dir=str(tmp_path))
    ours, theirs = (nib.load(folder / "torso_003_seg.nii.gz") for folder in (base / "output", tmp_path))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    assert ours.get_data_dtype() == theirs.get_data_dtype() == np.uint8
    assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).mean() > 0.9999


def test_weights_of_the_legacy_patch_merging_are_refused(tmp_path):
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference_portable.json"))
    parser.update({**TINY, "ckpt_path": some_weights(tmp_path / "model.pt", legacy=True)})
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("check_merging")
    assert "patch merging of MONAI before 1.5: use configs/inference.json" in str(error.value.__cause__)
