"""The real MONAI Label server with the bundles of 2-D networks, on volumes and pictures."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.clients.bundles import assert_same_label_map, own_result, own_run, tiny_bundle
from tests.clients.label_server import LabelServer
from tools.ultrasound_phantom import write_cohort

UNIVERSEG, ULTRABONES = "universeg", "ultrabones"


@pytest.fixture(scope="module")
def support(torso_data, tmp_path_factory):
    """A support set of one labelled volume."""
    folder = tmp_path_factory.mktemp("support")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
        shutil.copy(torso_data / kind / "torso_000.nii.gz", folder / kind)
    return folder


@pytest.fixture(scope="module")
def bundles(support, tmp_path_factory):
    """Packed bundles with random weights; the support set is named in the config, as the page of the bundle says."""
    folder = tmp_path_factory.mktemp("packed")
    settings = {UNIVERSEG: {"support": str(support)}, ULTRABONES: {}}
    return {name: tiny_bundle(name, folder, seed=1, **values) for name, values in settings.items()}


@pytest.fixture(scope="module")
def studies(torso, tmp_path_factory):
    """A CT volume, a sweep of ultrasound frames and one of its frames as a picture."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copy(torso, folder)
    (record,) = write_cohort(tmp_path_factory.mktemp("frames"), specimens=1, frames=3, size=(82, 96))
    pictures = sorted((record / "UltrasoundImages").iterdir())
    shutil.copy(pictures[0], folder / "frame.png")
    sweep = np.stack([np.asarray(Image.open(path)).T for path in pictures], axis=-1)
    nib.save(nib.Nifti1Image(sweep, np.diag([0.2, 0.2, 1, 1])), folder / "sweep.nii.gz")
    return folder


@pytest.fixture(scope="module")
def server(label_python, bundles, studies, tmp_path_factory):
    """A server of both bundles."""
    with LabelServer(label_python, tmp_path_factory.mktemp("server"), bundles.values(), studies) as running:
        yield running


@pytest.mark.parametrize(("name", "case"), [(UNIVERSEG, "torso_003"), (ULTRABONES, "sweep")])
def test_volume_gets_the_label_map_of_the_bundle(server, bundles, studies, tmp_path, name, case):
    expected = own_run(bundles[name], studies / f"{case}.nii.gz", tmp_path / "own")
    assert_same_label_map(server.infer(name, case).image, expected, values=2)


@pytest.mark.parametrize("name", [UNIVERSEG, ULTRABONES])
def test_picture_gets_the_label_map_of_the_bundle(server, bundles, studies, tmp_path, name):
    expected = np.asarray(Image.open(own_result(bundles[name], studies / "frame.png", tmp_path / "own")))
    assert expected.any()
    answer = np.asarray(server.infer(name, "frame", result_extension=".nii.gz").image.dataobj)
    np.testing.assert_array_equal(np.squeeze(answer).T, expected)
