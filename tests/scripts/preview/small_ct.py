"""A small CT with a spleen and a liver, and how its pictures are read."""

import numpy as np
from PIL import Image

from scripts.preview.rendering import make_scene

NAMES = {"0": "background", "1": "spleen", "2": "liver"}
SPACING_MM = (2.0, 1.0, 4.0)
SHAPE = (20, 40, 12)


def ct(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-150, 200, shape).astype(np.int16)


def organs(shape=SHAPE):
    """A spleen on the patient's left, a liver on the right, both in front (RAS)."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:6, 28:34, 3:6] = 1
    labels[12:18, 24:36, 5:9] = 2
    return labels


def ras_affine(spacing_mm=SPACING_MM):
    return np.diag([*spacing_mm, 1.0])


def oblique_affine(degrees=20.0):
    angle, affine = np.deg2rad(degrees), ras_affine()
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def scene_of(labels, *, affine=None, image=None, window=(-175, 250)):
    image = ct(shape=labels.shape) if image is None else image
    affine = ras_affine() if affine is None else affine
    return make_scene(image, {"prediction": labels}, affine=affine, class_names=NAMES, window=window)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def coloured(picture):
    """Pixels that are not gray."""
    return picture.max(axis=-1) - picture.min(axis=-1) > 30
