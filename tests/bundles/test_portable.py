"""configs/inference_portable.json of both network bundles, which needs nothing of `scripts`."""

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

BUNDLES = [ROOT / "bundles" / name for name in ("swin_bob_btcv", "swin_bob_brats")]
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


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request):
    return request.param


def some_weights(bundle, path, *, legacy=False):
    """Write weights by chance of a network of inference.json."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({**TINY, "legacy_merging": legacy})
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return str(path)


def test_packed_bundle_gives_the_same_labels_after_its_scripts_were_deleted(bundle, torso_data, brain_data, tmp_path):
    with zipfile.ZipFile(pack(bundle, tmp_path)) as zipped:
        zipped.extractall(tmp_path)
    base = tmp_path / bundle.name
    shutil.rmtree(base / "scripts")
    data = {"swin_bob_btcv": torso_data / "imagesTs", "swin_bob_brats": brain_data}
    settings = {**TINY, "ckpt_path": some_weights(bundle, tmp_path / "model.pt"), "dataset_dir": str(data[bundle.name])}
    settings["spacing_mm"] = [5.3, 5.3, 6.7]  # no voxel lies exactly on the edge of the crop, see RestoreLabelMapd
    code = RUN.format(settings=settings)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=base, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    settings["input"] = settings.pop("dataset_dir")
    run_bundle(bundle.name, ["inference.json"], kind="infer", **settings, output_dir=str(tmp_path))
    cases = sorted(path.name.removesuffix("_seg.nii.gz") for path in tmp_path.glob("*_seg.nii.gz"))
    assert cases
    for case in cases:
        ours, theirs = (nib.load(next(folder.glob(f"{case}*_seg.nii.gz"))) for folder in (base / "output", tmp_path))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
        assert ours.get_data_dtype() == theirs.get_data_dtype() == np.uint8
        ours, theirs = (np.asarray(image.dataobj) for image in (ours, theirs))
        assert len(np.unique(theirs)) > 2
        assert (ours == theirs).mean() > 0.9999


def test_weights_of_the_legacy_patch_merging_are_refused(bundle, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference_portable.json"))
    parser.update({**TINY, "ckpt_path": some_weights(bundle, tmp_path / "model.pt", legacy=True)})
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("check_merging")
    assert "patch merging of MONAI before 1.5: use configs/inference.json" in str(error.value.__cause__)
