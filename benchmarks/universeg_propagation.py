"""Compare two ways to use the labelled slices of a volume: `python -m benchmarks.universeg_propagation`.

Of a real CT and a real MR volume, every n-th slice is taken as labelled. The bundle segments the others by all of these
at once, or by the nearest ones, with the weights of `benchmarks.universeg_support`, a reduced network that saw phantoms
alone. Writes `results/universeg_propagation.csv`: Dice of each class over the slices that are not labelled.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from scripts.common.files import write_json, write_table
from tools import demo
from tools.demo_universeg import BUNDLE, REDUCED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
SHARED = ROOT.parent / "shared" / "data"
VOLUMES = {
    "ct_torso": ("label_totalsegmentator.nii.gz", "totalsegmentator_ct_classes.json", [-175, 250]),
    "mr_torso": ("label_totalsegmentator_mr.nii.gz", "totalsegmentator_mr_classes.json", None),
}
CLASSES = ("liver", "spleen", "kidney_left", "kidney_right", "stomach", "aorta", "autochthon_left", "urinary_bladder")
EVERY = {"ct_torso": (10, 20), "mr_torso": (4,)}
WAYS = {
    "all at once": {"support_choice": "random", "support_size": 64},
    "nearest 2": {"support_choice": "nearest", "support_size": 2},
    "nearest 4": {"support_choice": "nearest", "support_size": 4},
}
logger = logging.getLogger("universeg_propagation")


def chosen_labels(folder: Path, label: str, names: str) -> tuple[nib.Nifti1Image, dict[int, str]]:
    """Return the label map with the `CLASSES` alone, and their names."""
    ids = {name: int(i) for i, name in json.loads((folder / names).read_text()).items()}
    stored = nib.load(folder / label)
    values = np.asarray(stored.dataobj)
    kept = {i: name for name, i in ids.items() if name in CLASSES and (values == i).sum() > 200}
    return nib.Nifti1Image(np.where(np.isin(values, list(kept)), values, 0).astype(np.uint8), stored.affine), kept


def measure(out: Path, volume: str, every: int, weights: Path) -> Iterator[dict[str, Any]]:
    """Yield the Dice of each way and class."""
    label_file, names_file, intensity_range = VOLUMES[volume]
    label, names = chosen_labels(SHARED / volume, label_file, names_file)
    values = np.asarray(label.dataobj)
    axis = next(i for i, code in enumerate(nib.aff2axcodes(label.affine)) if code in "SI")
    labelled = np.zeros(values.shape[axis], dtype=bool)
    labelled[every // 2 :: every] = True
    slices = labelled.reshape([-1 if i == axis else 1 for i in range(3)])
    folder = out / volume / str(every)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / "images" / "scan.nii.gz").write_bytes((SHARED / volume / "image.nii.gz").read_bytes())
    nib.save(nib.Nifti1Image(values * slices, label.affine), folder / "labels" / "scan.nii.gz")
    write_json(folder / "labels.json", {str(i): name for i, name in names.items()})
    common = {**REDUCED, "intensity_range": intensity_range or "$None", "ckpt_path": str(weights)}
    files = {"input": str(folder / "images"), "support": str(folder)}
    for way, settings in WAYS.items():
        results = folder / way.replace(" ", "_")
        demo.run(BUNDLE, {**common, **files, **settings, "output_dir": str(results)}, "inference.json")
        found = np.asarray(nib.load(results / "scan_seg.nii.gz").dataobj)
        for i, name in names.items():
            pair = [np.compress(~labelled, one == i, axis=axis) for one in (found, values)]
            dice = 2 * (pair[0] & pair[1]).sum() / max(1, sum(one.sum() for one in pair))
            yield {
                "volume": volume,
                "labelled_every": every,
                "labelled": int(labelled.sum()),
                "way": way,
                "class": name,
                "dice": dice,
            }


def main() -> int:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "demo" / "universeg", help="folder (default: demo/universeg)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    weights = args.out.resolve() / "models" / "model.pt"
    if not SHARED.is_dir() or not weights.is_file():
        logger.info("skipped: needs %s, and %s of benchmarks.universeg_support", SHARED, weights)
        return 0
    out = args.out.resolve() / "propagation"
    rows = [row for name, steps in EVERY.items() for every in steps for row in measure(out, name, every, weights)]
    table = pd.DataFrame(rows).pivot(
        index=["volume", "labelled_every", "labelled", "class"], columns="way", values="dice"
    )
    table = table[list(WAYS)].reset_index()
    write_table(table, RESULTS / "universeg_propagation.csv", decimals=3)
    means = table.groupby(["volume", "labelled_every", "labelled"])[list(WAYS)].mean()
    logger.info("\n%s\n\n%s", table.round(3).to_string(index=False), means.round(3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
