"""What `--speed fast` costs: `python -m benchmarks.window_overlap`.

Segments the test phantoms of `benchmarks.etta_shift` with its well-trained network, with both overlaps of the windows,
by the parts of the bundle. Windows are 32 x 32 x 64 voxels, smaller than those of the training: at 64 voxels a phantom
has the same windows with either overlap. Writes `results/window_overlap.csv`; times are those of the processor.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate

from benchmarks.etta.networks import Case, cases, network, train
from scripts.common.files import write_table
from tools.demo import BUNDLE, REDUCED_NETWORK

RESULTS = Path(__file__).parent / "results"
PATCH_SIZE = [32, 32, 64]
NETWORK = "well trained"
CLASSES = 14
logger = logging.getLogger(__name__)


def parsed(speed: str) -> ConfigParser:
    """Read the config of inference at reduced size."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.read_meta(str(BUNDLE / "configs" / "metadata.json"))
    parser.update({**REDUCED_NETWORK, "patch_size": PATCH_SIZE, "speed": speed, "inferer#progress": False})
    return parser


def mean_dice(pred: np.ndarray, label: np.ndarray) -> float:
    """Return the mean Dice over the classes that the label has."""
    pairs = [(pred == k, label == k) for k in range(1, CLASSES)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if b.any()]))


def measure(case: Case, model: torch.nn.Module) -> dict[str, Any]:
    """Segment one phantom with both overlaps."""
    parser = parsed("accurate")
    preprocessing, post = (parser.get_parsed_content(part) for part in ("preprocessing", "postprocessing"))
    data = preprocessing({"image": str(case.image), "case": case.image.name})
    inputs = list_data_collate([data])["image"]
    row, maps = {"case": case.image.name.partition(".")[0]}, {}
    for speed in ("accurate", "fast"):
        inferer = parsed(speed).get_parsed_content("inferer")
        start = time.process_time()
        with torch.no_grad():
            logits = inferer(inputs, model)[0]
        row[f"seconds_{speed}"] = time.process_time() - start
        maps[speed] = np.asarray(post.transforms[0]({**data, "pred": logits})["pred"])[0]
        row[f"dice_{speed}"] = mean_dice(maps[speed], np.asarray(nib.load(case.label).dataobj))
    row["dice_between"] = mean_dice(maps["fast"], maps["accurate"])
    return {**row, "time_ratio": row["seconds_fast"] / row["seconds_accurate"]}


def main() -> int:
    """Measure each phantom and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=4)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(NETWORK)
    table = pd.DataFrame([measure(case, network(NETWORK)) for case in cases(NETWORK, args.cases)])
    logger.info("%s", table.round(3).to_string(index=False))
    write_table(table.drop(columns=["seconds_accurate", "seconds_fast"]), RESULTS / "window_overlap.csv", decimals=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
