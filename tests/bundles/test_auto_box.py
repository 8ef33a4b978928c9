"""Two bundles, one after the other by the commands of their pages: coarse maps, and boxes of them as prompts."""

import os
import re
import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser

from tests.conftest import ROOT, TINY, TINY_OF, command_line
from tests.scripts.models.tiny_networks import saved, tiny_of
from tools.torso import TISSUES

POINTWISE = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 14, "kernel_size": 1}
"""A network that tells organs by their intensity."""
COARSE = {"network_def": POINTWISE, "spacing_mm": TINY["spacing_mm"], "patch_size": [64, 64, 64], "num_workers": 0}
SEGVOL = {key: value for key, value in TINY_OF["segvol"].items() if key != "text"}
ORGANS = ("liver", "spleen", "aorta", "right kidney")


def pointwise_state():
    """Return weights by which each organ has the intensities around its own in the phantom, 13 HU to both sides.

    The largest of several straight lines changes where neighbours cross: classes in the order of their slopes.
    """
    limits = [((TISSUES[name].hu - 13 + 175) / 425, TISSUES[name].label) for name in ORGANS]
    weight, bias = torch.zeros(14), torch.full((14,), -1000.0)
    weight[0] = bias[0] = offset = 0.0
    for slope, (low, label) in enumerate(sorted(limits), start=1):
        offset -= low
        weight[label], bias[label] = slope, offset
    return {"weight": weight.reshape(14, 1, 1, 1, 1), "bias": bias}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    saved(folder / "segvol.pt", tiny_of("segvol").state_dict())
    saved(folder / "swin_bob_btcv.pt", pointwise_state())
    return folder


def documented(bundle, *words, **places):
    """Run the command of a bundle's page that has some words, in its folder, with paths in place of capitals."""
    page = (ROOT / "bundles" / bundle / "docs" / "README.md").read_text().replace("\\\n", " ")
    (line,) = (
        line for line in page.splitlines() if line.lstrip().startswith("python") and all(w in line for w in words)
    )
    typed = shlex.split(re.sub("|".join(places), lambda found: str(places[found[0]]), line), comments=True)
    return [sys.executable, *typed[1:]]


def run(command, bundle, **settings):
    done = subprocess.run(
        [*command, *command_line(settings)], cwd=ROOT / "bundles" / bundle, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def chained(torso_data, weights, tmp_path_factory):
    """Folder with three images, one of which is damaged and one has no organ, and the results of both bundles."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "in").mkdir()
    image = nib.load(torso_data / "imagesTs" / "torso_003.nii.gz")
    nib.save(image, folder / "in" / "torso.nii.gz")
    fat = np.random.default_rng(0).integers(-120, -80, image.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(fat, image.affine), folder / "in" / "fat.nii.gz")
    (folder / "in" / "cut.nii.gz").write_bytes((folder / "in" / "torso.nii.gz").read_bytes()[:2000])
    first = documented("swin_bob_btcv", "# segment", INPUT=folder / "in", OUT=folder / "coarse")
    second = documented("segvol", "auto_box.json", CTS=folder / "in", MAPS=folder / "coarse")
    ended = [
        run(first, "swin_bob_btcv", **COARSE, ckpt_path=str(weights / "swin_bob_btcv.pt"), gif=True),
        run(second, "segvol", **SEGVOL, ckpt_path=str(weights / "segvol.pt"), output_dir=str(folder / "out")),
    ]
    return folder, ended


def test_organs_of_the_coarse_map_are_segmented_by_box_and_name(chained):
    folder, _ = chained
    coarse = nib.load(folder / "coarse" / "torso_seg.nii.gz")
    labels = np.asarray(coarse.dataobj)
    named = {TISSUES[name].label: name for name in ORGANS}
    assert set(np.unique(labels)) == {0, *named}
    table = pd.read_csv(folder / "out" / "prompts.csv")
    assert set(table["case"]) == {"torso"}
    assert dict(zip(table["class_id"], table["name"], strict=True)) == named
    assert set(table["prompt"]) == {"box+text"}
    found = nib.load(folder / "out" / "torso_seg.nii.gz")
    assert found.shape == coarse.shape
    np.testing.assert_allclose(found.affine, coarse.affine, atol=1e-4)
    assert set(np.unique(found.dataobj)) <= {0, *named}
    assert (folder / "out" / "torso_preview.png").is_file()


def test_case_without_organs_fails_by_name_and_one_without_a_map_is_left_out(chained):
    folder, (first, second) = chained
    assert (first.returncode, second.returncode) == (1, 1)
    assert pd.read_csv(folder / "coarse" / "failed.csv")["case"].tolist() == ["cut"]
    assert "1 cases have no map and are left out: cut" in second.stderr
    failed = pd.read_csv(folder / "out" / "failed.csv", index_col="case")["reason"]
    assert failed.index.tolist() == ["fat"]
    assert "fat_seg.nii.gz: holds none of the 13 organs of map_classes" in failed["fat"]
    assert second.stderr.strip().splitlines()[-1].endswith(failed["fat"])


def test_maps_are_by_default_the_results_of_the_bundle_beside():
    maps, classes, results = (
        os.path.normpath(content(bundle, configs, key))
        for bundle, configs, key in (
            ("segvol", ["inference.json", "auto_box.json"], "maps"),
            ("segvol", ["inference.json", "auto_box.json"], "map_classes"),
            ("swin_bob_btcv", ["inference.json"], "output_dir"),
        )
    )
    assert maps == results
    assert classes == str(ROOT / "bundles" / "swin_bob_btcv" / "configs" / "metadata.json")


def content(bundle, configs, key):
    """Return a setting as the configs of a bundle give it."""
    folder, parser = ROOT / "bundles" / bundle, ConfigParser()
    parser.read_config([str(folder / "configs" / name) for name in configs])
    parser["bundle_root"] = str(folder)
    return parser.get_parsed_content(key)
