import numpy as np
from PIL import Image

from scripts.ukbb.montage import write_montage


def test_liver_is_on_the_left_and_the_head_up(tmp_path):
    """The patient's right is drawn on the left, as radiologists look at it."""
    channels = np.zeros((4, 40, 30, 60), np.int16)
    channels[:, 10:30, 10:20] = 100
    channels[0, 22:30, 10:20, 40:50] = 1000  # right, near the head
    write_montage(channels, (4.0, 4.0, 4.0), tmp_path / "a.png", title="a")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(float)
    fat = picture[36 : 36 + 120, 8 : 8 + 80]
    rows, columns = np.nonzero(fat > 200)
    assert 24 < rows.mean() < 36
    assert columns.mean() < 32


def test_gaps_are_red_and_seams_are_marked(tmp_path):
    channels = np.full((4, 40, 30, 60), 50, np.int16)
    channels[..., 20:30] = 0
    write_montage(channels, (4.0, 4.0, 4.0), tmp_path / "a.png", title="a", gaps=[(20, 29)], seams=[45])
    picture = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    red = (picture[..., 0] > 140) & (picture[..., 1] < 60)
    rows = np.flatnonzero(red.any(axis=1)) - 36
    assert 58 < rows.min() < 62
    assert 77 < rows.max() < 81
    assert (picture[..., 2] - picture[..., 0] > 30).any()


def test_empty_volume_is_drawn(tmp_path):
    write_montage(np.zeros((4, 9, 8, 7), np.int16), (1.0, 1.0, 1.0), tmp_path / "a.png", title="a")
    assert Image.open(tmp_path / "a.png").size[0] > 8
