import json

import nibabel as nib
import numpy as np

from scripts.common.organs import ORGANS
from scripts.ukbb.archive import CHANNELS
from scripts.ukbb.swaps import channel_signs
from tools.dixon_phantom import dixon_phantom, main

SHAPE, SPACING_MM = (50, 38, 44), (6.0, 6.0, 6.0)


def test_contrasts_obey_the_arithmetic_of_dixon_images():
    image, label = dixon_phantom(np.random.default_rng(0), SHAPE, SPACING_MM)
    fat, water, together, opposed = (image[..., CHANNELS.index(name)] for name in CHANNELS)
    np.testing.assert_array_equal(together, fat + water)
    np.testing.assert_array_equal(opposed, abs(water - fat))
    assert image.min() == 0
    assert label.shape == SHAPE
    assert not channel_signs(np.moveaxis(image, -1, 0), SPACING_MM[:2])


def test_labels_are_organs_fat_and_muscle():
    image, label = dixon_phantom(np.random.default_rng(0), SHAPE, SPACING_MM)
    found = {ORGANS[value] for value in np.unique(label) if value}
    assert {"liver", "kidney_right", "adrenal_gland_left", "muscle", "inner_fat"} <= found
    assert len(found) == 15
    fat, water = image[..., 0], image[..., 1]
    assert (fat[label == 67] > water[label == 67]).all()
    assert (fat[label == 66] < water[label == 66]).all()


def test_command_writes_a_data_set(tmp_path, capsys):
    arguments = [str(tmp_path), "--cases", "3", "--shape", "50", "38", "44", "--spacing", "6", "6", "6"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'dataset_0.json'}\n"
    content = json.loads((tmp_path / "dataset_0.json").read_text())
    for section in ("training", "validation", "test"):
        (item,) = content[section]
        image, label = (nib.load(tmp_path / item[key]) for key in ("image", "label"))
        assert image.shape == (*label.shape, 4)
        np.testing.assert_allclose(image.affine, label.affine)
