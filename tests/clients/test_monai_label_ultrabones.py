"""The real MONAI Label server with the packed bundle `ultrabones`."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.clients.bundles import own_run, packed_bundle, set_values, write_weights
from tests.clients.label_server import LabelServer
from tests.conftest import TINY_OF
from tools.ultrasound_phantom import random_outline, render

BUNDLE = "ultrabones"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The packed bundle with a tiny network, by which about half of a frame is bone."""
    folder = packed_bundle(BUNDLE, tmp_path_factory.mktemp("packed"))
    set_values(folder, "inference", TINY_OF[BUNDLE])
    write_weights(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A sweep as NIfTI and a frame as PNG."""
    folder, generator = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
    frames = [render(random_outline(96, generator), 82, generator) for _ in range(3)]
    sweep = nib.Nifti1Image(np.stack(frames).transpose(2, 1, 0), np.diag([-0.5, -0.5, 1, 1]))
    nib.save(sweep, folder / "sweep.nii.gz")
    Image.fromarray(frames[0]).save(folder / "frame.png")
    return folder


def test_sweep_and_picture_get_the_label_map_of_the_bundle(label_python, bundle, studies, tmp_path):
    expected = own_run(bundle, studies / "sweep.nii.gz", tmp_path / "own")
    with LabelServer(label_python, tmp_path, [bundle], studies) as server:
        answer = server.infer(BUNDLE, "sweep")
        picture = server.infer(BUNDLE, str(studies / "frame.png"), result_extension=".nii.gz")
    assert answer.label_names == {"bone": 1}
    shares = [np.asarray(image.dataobj).mean() for image in (answer.image, expected)]
    assert 0 < shares[0] < 1
    np.testing.assert_array_equal(np.asarray(answer.image.dataobj), np.asarray(expected.dataobj))
    assert np.mean(np.asarray(picture.image.dataobj)[..., 0] != np.asarray(expected.dataobj)[..., 0]) < 1e-3
