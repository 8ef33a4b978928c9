"""Make a small cohort of torso phantoms in Dixon contrasts: `python -m tools.dixon_phantom OUT --cases 6 --seed 0`.

They are the torsos of `tools.torso` with four channels (fat, water, in-phase, opposed-phase) in place of HU, and with
ids of the 72 organs: the thirteen of BTCV, fat inside the body, and muscle for all other tissue.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.common.organs import IDS_OF_NAMES, organ_ids
from scripts.ukbb.archive import CHANNELS, CONTRASTS
from tools.phantom_cohort import run_command, write_datalist, write_volumes
from tools.torso import DEFAULT_SHAPE, DEFAULT_SPACING_MM, ORGANS, TISSUES, torso_phantom
from tools.ukbb_archives import contrasts

AIR_HU, FAT_HU = -300, -30  # tissue is above, fat below


def dixon_phantom(
    rng: np.random.Generator,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
) -> tuple[np.ndarray, np.ndarray]:
    """Make one phantom; arguments and errors are those of `torso_phantom`.

    Returns:
        The image (X, Y, Z, 4), int16, in the order of `CHANNELS`, and the label (X, Y, Z), uint8.
    """
    hu, btcv = torso_phantom(rng, shape, spacing_mm)
    ids = np.zeros(256, dtype=np.uint8)
    for name in ORGANS:
        (ids[TISSUES[name].label],) = organ_ids(name)
    label = ids[btcv]
    is_fat = (hu > AIR_HU) & (hu < FAT_HU)
    rest = (label == 0) & (hu > AIR_HU)
    label[rest] = np.where(is_fat[rest], IDS_OF_NAMES["inner_fat"], IDS_OF_NAMES["muscle"])
    brightness = np.where(hu > AIR_HU, 200 + np.clip(hu.astype(np.int32), -150, 250), 0)
    fat = np.where(is_fat, 600 - brightness, brightness // 20)
    water = np.where(is_fat, brightness // 10, brightness)
    images = contrasts(fat, water)
    parts = {name: part for part, name in CONTRASTS.items()}
    return np.stack([images[parts[name]] for name in CHANNELS], axis=-1).astype(np.int16), label


def write_cohort(
    out_dir: str | Path,
    *,
    cases: int = 6,
    seed: int = 0,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
) -> Path:
    """Write a Decathlon-style data set: the last case for test, the one before for validation.

    Args:
        out_dir: folder to write; made if absent.
        cases: number of patients, at least 3.
        seed: not negative; the same seed gives the same bytes.
        shape: voxels along right, anterior, superior, before a case's stored orientation permutes them.
        spacing_mm: voxel size along the same axes, in mm.

    Returns:
        The path of dataset_0.json.

    Raises:
        ValueError: cases, seed, shape or spacing_mm is out of range.
    """
    items = [{kind: f"{kind}s/dixon_{index:03d}.nii.gz" for kind in ("image", "label")} for index in range(cases)]
    write_volumes(Path(out_dir), items, dixon_phantom, seed=seed, shape=shape, spacing_mm=spacing_mm)
    content = {
        "name": "torso phantoms in Dixon contrasts",
        "training": items[:-2],
        "validation": items[-2:-1],
        "test": items[-1:],
    }
    return write_datalist(Path(out_dir), content)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(write_cohort, argv, doc=__doc__, shape=DEFAULT_SHAPE, spacing_mm=DEFAULT_SPACING_MM)


if __name__ == "__main__":
    sys.exit(main())
