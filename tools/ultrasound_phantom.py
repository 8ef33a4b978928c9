"""B-mode images computed from the outline of a bone, in the folders of UltraBones100k.

`python -m tools.ultrasound_phantom OUT --specimens 6 --frames 10`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from scripts.common.files import atomic_path

FIELD_MM = (43.7, 51.2)
"""Depth and width of an image, as of the real ones."""
EMPTY_SHARE = 0.1


@dataclass(frozen=True)
class Outline:
    """The surface of a bone that ultrasound sees: its depth along the width of the image.

    Attributes:
        depth_mm: (W,), NaN where there is no bone.
    """

    depth_mm: np.ndarray


def random_outline(width: int, generator: np.random.Generator, *, bow_mm: float = 8.0, empty: bool = False) -> Outline:
    """Return a bowed surface between two places, or none.

    Args:
        width: of the image, in pixels.
        generator: of its place and form.
        bow_mm: about how much deeper the ends lie than the middle.
        empty: whether there is no bone.
    """
    x_mm = (np.arange(width) + 0.5) * FIELD_MM[1] / width
    middle_mm, half_mm = generator.uniform(14, 37), generator.uniform(7, 13)
    top_mm, tilt = generator.uniform(9, 22), generator.uniform(-0.25, 0.25)
    wave_mm = generator.uniform(0, 0.8) * np.sin(x_mm * generator.uniform(0.3, 0.8) + generator.uniform(0, 6))
    u = (x_mm - middle_mm) / half_mm
    depth_mm = top_mm + bow_mm * generator.uniform(0.6, 1.4) * u**2 + tilt * (x_mm - middle_mm) + wave_mm
    return Outline(np.where((np.abs(u) < 1) & (not empty), depth_mm, np.nan))


def render(outline: Outline, height: int, generator: np.random.Generator) -> np.ndarray:
    """Compute the image of a surface.

    Echoes of layered tissue and of fasciae, which are bright but cast no shadow, the surface itself, brighter the more
    it faces the probe, and little below it; times speckle of a Rayleigh distribution that is blurred more along the
    width than along the depth; then logarithmic compression.

    Args:
        outline: of the bone, (W,).
        height: of the image, in pixels.
        generator: of tissue and speckle.

    Shape:
        (H, W), uint8.
    """
    width = len(outline.depth_mm)
    pixel_mm = FIELD_MM[0] / height, FIELD_MM[1] / width
    depth_mm = (np.arange(height)[:, None] + 0.5) * pixel_mm[0]
    tissue = gaussian_filter(generator.normal(size=(height, width)), [0.6 / pixel_mm[0], 3 / pixel_mm[1]])
    echo = np.exp(0.7 * tissue / tissue.std() - depth_mm / 14) * 0.06
    x_mm = np.arange(width) * pixel_mm[1]
    for _ in range(generator.integers(1, 4)):
        layer_mm = generator.uniform(2, 35) + generator.uniform(-0.15, 0.15) * x_mm
        echo += 0.25 * generator.random() * np.exp(-(((depth_mm - layer_mm) / 0.35) ** 2)) * np.exp(-depth_mm / 30)
    below_mm = depth_mm - np.nan_to_num(outline.depth_mm, nan=np.inf)
    slope = np.gradient(outline.depth_mm, pixel_mm[1])
    facing = np.nan_to_num((1 + slope**2) ** -2.5)  # 0 at both ends
    shadow = np.where(below_mm > 0, np.exp(-np.maximum(below_mm, 0) / 3) + 0.02, 1.0)
    shadow = gaussian_filter(shadow, [0, 0.7 / pixel_mm[1]])
    echo = echo * shadow + facing * np.exp(-((below_mm / 0.45) ** 2))
    speckle = gaussian_filter(generator.normal(size=(2, height, width)), [0, 0.12 / pixel_mm[0], 0.3 / pixel_mm[1]])
    amplitude = echo * np.hypot(*speckle) / speckle.std() + 0.001 * generator.rayleigh(size=echo.shape)
    decibel = 20 * np.log10(np.maximum(amplitude, 1e-6))
    return np.round(255 * np.clip((decibel + generator.uniform(42, 48)) / 52, 0, 1)).astype(np.uint8)


def draw_label(outline: Outline, height: int) -> np.ndarray:
    """Draw the surface as pixels of 255, (H, W): one in each column, and those between neighbours."""
    label = np.zeros((height, len(outline.depth_mm)), dtype=np.uint8)
    rows = np.floor(outline.depth_mm / FIELD_MM[0] * height)
    inside = np.flatnonzero((rows >= 0) & (rows < height))
    for column in inside:
        left = rows[column - 1] if column - 1 in inside else rows[column]
        first, last = sorted((int(left), int(rows[column])))
        label[first : last + 1, column] = 255
    return label


def specimen_names(count: int) -> list[str]:
    """Return names as the published ones; every third and fourth are the two legs of one donor.

    >>> specimen_names(5)
    ['cadaver00_F100000', 'cadaver01_F100001', 'cadaver02_S100002L', 'cadaver03_S100002R', 'cadaver04_F100004']
    """
    legs = {2: "S{:06d}L", 3: "S{:06d}R"}
    donors = [100000 + i - (i % 4 == 3) for i in range(count)]
    return [f"cadaver{i:02d}_{legs.get(i % 4, 'F{:06d}').format(donor)}" for i, donor in enumerate(donors)]


def write_cohort(
    out: Path, *, specimens: int, frames: int, size: tuple[int, int] = (205, 240), seed: int = 0, flat: bool = False
) -> list[Path]:
    """Write sweeps of phantoms, each specimen with a bone of its own bow, and return their folders.

    Args:
        out: folder of the cohort.
        specimens: number of specimens.
        frames: images of each; about a tenth of them show no bone.
        size: height and width of an image in pixels.
        seed: of everything that is random.
        flat: the folders as the published README shows them (`record01/Labels`), not as the published code reads them
            (`Linear18/record01/Label_partial_gradient`).
    """
    folders = []
    for name, seeds in zip(specimen_names(specimens), np.random.SeedSequence(seed).spawn(specimens), strict=True):
        generator = np.random.default_rng(seeds)
        record = out / name / ("record01" if flat else "Linear18/record01")
        labels, suffix = ("Labels", "_label") if flat else ("Label_partial_gradient", "_label_partial_gradient")
        bow_mm = generator.uniform(4, 10)
        for frame in range(frames):
            outline = random_outline(size[1], generator, bow_mm=bow_mm, empty=generator.random() < EMPTY_SHARE)
            timestamp = f"{100000 + 50 * frame}"
            write_gray(render(outline, size[0], generator), record / "UltrasoundImages" / f"{timestamp}.png")
            write_gray(draw_label(outline, size[0]), record / labels / f"{timestamp}{suffix}.png")
        folders.append(record)
    return folders


def write_gray(pixels: np.ndarray, path: Path) -> None:
    """Write a gray picture, (H, W), as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.ultrasound_phantom", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--specimens", type=int, default=6)
    parser.add_argument("--frames", type=int, default=10, help="images of each specimen")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    write_cohort(options.out, specimens=options.specimens, frames=options.frames, seed=options.seed)


if __name__ == "__main__":
    main()
