import numpy as np
from PIL import Image

from scripts.preview.colors import ORGAN_COLORS
from scripts.preview.gif import slice_gif
from scripts.preview.rendering import inside_color
from tests.scripts.preview.small_ct import NAMES, SHAPE, coloured, ct, organs, ras_affine


def frame_of(path, index):
    with Image.open(path) as gif:
        gif.seek(index)
        return np.asarray(gif.convert("RGB")).astype(int)


def test_gif_has_a_frame_per_labelled_slice_and_three_panels(tmp_path):
    path = tmp_path / "a.gif"
    slice_gif(ct(), organs(), path, affine=ras_affine(), label=organs(), class_names=NAMES, max_panel_px=60)
    with Image.open(path) as gif:
        assert gif.n_frames == 12  # slices 3..8 and three on either side
        assert gif.size == (3 * 60 + 2 * 4, 60 + 24)
        assert gif.info["loop"] == 0
    frame = frame_of(path, 5)
    image, pred, label = frame[26:, :60], frame[26:, 64:124], frame[26:, 128:]
    assert not coloured(image).any()
    assert coloured(pred).any()
    assert np.array_equal(pred[:-2], label[:-2])


def test_gif_of_an_empty_prediction_shows_all_slices(tmp_path):
    empty, path = np.zeros(SHAPE, dtype=np.uint8), tmp_path / "a.gif"
    slice_gif(ct(), empty, path, affine=ras_affine(), class_names=NAMES, max_panel_px=40)
    assert Image.open(path).n_frames == SHAPE[2]
    assert not coloured(frame_of(path, 5)).any()


def test_gif_of_many_equal_slices_has_the_wanted_number_of_frames(tmp_path):
    labels = np.zeros((8, 8, 200), dtype=np.uint8)
    labels[2:5, 2:5, 20:180] = 1
    same = np.zeros(labels.shape, dtype=np.int16)  # equal frames, which Pillow would merge
    slice_gif(same, labels, tmp_path / "a.gif", affine=np.eye(4), class_names=NAMES, max_panel_px=48)
    assert Image.open(tmp_path / "a.gif").n_frames == 60


def test_small_organs_keep_their_colours_beside_large_ones_on_a_gray_image(tmp_path):
    names = {1: "liver", 2: "aorta", 3: "inferior vena cava"}
    labels = np.zeros((64, 64, 9), dtype=np.uint8)
    labels[2:62, 30:62, 3:6] = 1
    labels[10:18, 8:16, 4], labels[24:32, 8:16, 4] = 2, 3
    image = np.random.default_rng(0).normal(0, 20, labels.shape) + np.linspace(-100, 100, 64)[:, None, None]
    image[:, :20] = 0
    options = {"affine": np.eye(4), "class_names": names, "window": (-100, 100), "max_panel_px": 192}
    slice_gif(image, labels, tmp_path / "a.gif", **options)
    frame = frame_of(tmp_path / "a.gif", 4)[24:-2]
    gray, panel = frame[:, :192], frame[:, 196:]  # 3 pixels a voxel, the patient's right on the left
    for x, organ in ((14, "aorta"), (28, "inferior_vena_cava")):
        inside = panel[(64 - 12) * 3, (64 - x) * 3]
        assert np.abs(inside - inside_color(ORGAN_COLORS[organ])).max() <= 2, organ
        assert (np.abs(panel - ORGAN_COLORS[organ]).max(axis=-1) <= 2).sum() > 20, organ
    assert (gray.max(axis=-1) - gray.min(axis=-1)).max() <= 4, "the image is tinted"
