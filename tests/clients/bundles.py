"""Bundles as they are packed, made small, and their own runs to compare with."""

import json
import shutil
import zipfile

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from tests.clients.programs import PROJECT_PYTHON, run
from tests.conftest import ROOT, TINY, TINY_OF, TINY_TRAINING
from tools.pack import pack

SMALL_TRAINING = {key: value for key, value in {**TINY, **TINY_TRAINING}.items() if key != "warmup_epochs"}
"""The warm-up stays as the bundle computes it."""


def packed_bundle(name, folder):
    """Pack a bundle and unpack it into a folder, as somebody who downloads it does."""
    archive = pack(ROOT / "bundles" / name, folder)
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    archive.unlink()
    return folder / name


def tiny_bundle(name, folder, *, seed, **values):
    """Pack a bundle, make its network tiny, give it random weights and set values of `inference.json`."""
    bundle = packed_bundle(name, folder)
    set_values(bundle, "inference", {**TINY_OF.get(name, TINY), **values})
    if name not in TINY_OF:
        set_values(bundle, "train", SMALL_TRAINING)
    write_weights(bundle, seed=seed)
    return bundle


def set_values(bundle, config, values):
    """Write values into a config, as a user with an editor does."""
    path = bundle / "configs" / f"{config}.json"
    parser = ConfigParser(json.loads(path.read_text()))
    for key, value in values.items():
        parser.set(value, key)
    path.write_text(json.dumps(parser.config, indent=4))


def make_network(bundle, **values):
    """Make the network that a bundle describes."""
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    for key, value in values.items():
        parser.set(value, key)
    return parser.get_parsed_content("network_def")


def write_weights(bundle, *, seed, name="model.pt", **values):
    """Write random weights, whose outputs differ enough for borders of all classes."""
    torch.manual_seed(seed)
    network = make_network(bundle, **values)
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), bundle / "models" / name)


def copy_bundle(bundle, folder):
    """Copy a bundle that a test will write into."""
    return shutil.copytree(bundle, folder / bundle.name)


def own_run(bundle, source, out, *more, config="['configs/inference.json']", python=PROJECT_PYTHON):
    """Segment by the bundle's own command in its folder and return the label map, an image of nibabel."""
    return nib.load(own_result(bundle, source, out, *more, config=config, python=python))


def own_result(bundle, source, out, *more, config="['configs/inference.json']", python=PROJECT_PYTHON):
    """Segment as `own_run` and return the path of the label map."""
    arguments = ["--config_file", config, "--input", str(source), "--output_dir", str(out), *more]
    run(python, "-m", "monai.bundle", "run", *arguments, cwd=bundle)
    (result,) = out.glob("*_seg.*")
    return result


def assert_same_label_map(image, expected, *, values=3):
    """Assert that no voxel differs, and that the label map is not trivial: it holds at least so many values."""
    ours, theirs = np.asarray(expected.dataobj), np.asarray(image.dataobj)
    assert theirs.shape == ours.shape
    assert len(np.unique(ours)) >= values, "a label map this plain proves little"
    assert int((ours != theirs).sum()) == 0, "voxels differ"
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)
