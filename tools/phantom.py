"""Make a small cohort of CT torso phantoms: `python -m tools.phantom OUT --cases 6 --seed 0`.

The phantoms stand in for patients in the demo and in the workflow tests: thirteen abdominal organs in BTCV
numbering at plausible places, sizes and portal-venous HU. They show that the code works, not how well a network
segments patients.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tools.phantom_cohort import run_command, write_datalist, write_volumes
from tools.torso import DEFAULT_SHAPE, DEFAULT_SPACING_MM, ORGANS, TISSUES, torso_phantom


def write_cohort(
    out_dir: str | Path,
    *,
    cases: int = 6,
    seed: int = 0,
    shape: Sequence[int] = DEFAULT_SHAPE,
    spacing_mm: Sequence[float] = DEFAULT_SPACING_MM,
    organs: Sequence[int] = (),
) -> Path:
    """Write a Decathlon-style data set: the last case for test, the one before for validation.

    Args:
        out_dir: folder to write; made if absent.
        cases: number of patients, at least 3.
        seed: not negative; the same seed gives the same bytes.
        shape: voxels along right, anterior, superior, before a case's stored orientation permutes them.
        spacing_mm: voxel size along the same axes, in mm.
        organs: numbers of those that are labelled; empty: all.

    Returns:
        The path of dataset_0.json.

    Raises:
        ValueError: cases, seed, shape or spacing_mm is out of range.
    """
    out = Path(out_dir)
    items = [_files(index, suffix="Ts" if index == cases - 1 else "Tr") for index in range(cases)]
    write_volumes(out, items, partial(torso_phantom, organs=organs), seed=seed, shape=shape, spacing_mm=spacing_mm)
    for index in range(cases):
        # A cohort of another size may have left this patient on the other side of the split.
        for path in _files(index, suffix="Tr" if index == cases - 1 else "Ts").values():
            (out / path).unlink(missing_ok=True)
    names = {TISSUES[name].label: name for name in ORGANS}
    content = {
        "name": "torso phantoms",
        "description": f"Synthetic portal-venous CT torsos from tools/phantom.py, seed {seed}; no patients",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(n): name for n, name in names.items() if not organs or n in organs},
        "training": items[:-2],
        "validation": items[-2:-1],
        "test": items[-1:],
    }
    return write_datalist(out, content)


def _files(index: int, *, suffix: str) -> dict[str, str]:
    return {kind: f"{kind}s{suffix}/torso_{index:03d}.nii.gz" for kind in ("image", "label")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(write_cohort, argv, doc=__doc__, shape=DEFAULT_SHAPE, spacing_mm=DEFAULT_SPACING_MM)


if __name__ == "__main__":
    sys.exit(main())
