"""What `--speed fast` costs: `python -m benchmarks.window_overlap`, after `make demo`.

Segments phantoms that the network of the demo was not trained on with both overlaps of the windows, by the parts of the
bundle. Windows are 32 x 32 x 64 voxels, smaller than those of the training: at 64 voxels a phantom has the same windows
with either overlap. Writes `results/window_overlap.csv`; times are those of the processor.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate

from scripts.common.files import write_table
from tools.demo import BUNDLE, REDUCED_NETWORK, ROOT
from tools.phantom import write_cohort

RESULTS = Path(__file__).parent / "results"
PATCH_SIZE = [32, 32, 64]
SEED = 1000  # of the phantoms; the demo trains on those of 0
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


def measure(image: Path, label: Path, network: torch.nn.Module) -> dict[str, Any]:
    """Segment one phantom with both overlaps."""
    parser = parsed("accurate")
    preprocessing, post = (parser.get_parsed_content(part) for part in ("preprocessing", "postprocessing"))
    data = preprocessing({"image": str(image), "case": image.name})
    inputs = list_data_collate([data])["image"]
    row, maps = {"case": image.name.partition(".")[0]}, {}
    for speed in ("accurate", "fast"):
        inferer = parsed(speed).get_parsed_content("inferer")
        start = time.process_time()
        with torch.no_grad():
            logits = inferer(inputs, network)[0]
        row[f"seconds_{speed}"] = time.process_time() - start
        maps[speed] = np.asarray(post.transforms[0]({**data, "pred": logits})["pred"])[0]
        row[f"dice_{speed}"] = mean_dice(maps[speed], np.asarray(nib.load(label).dataobj))
    row["dice_between"] = mean_dice(maps["fast"], maps["accurate"])
    return {**row, "time_ratio": row["seconds_fast"] / row["seconds_accurate"]}


def main() -> int:
    """Measure each phantom and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=ROOT / "demo" / "models" / "model.pt")
    parser.add_argument("--cases", type=int, default=4)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.weights.is_file():
        logger.error("%s is absent; run `make demo` first", args.weights)
        return 1
    network = parsed("accurate").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(args.weights, weights_only=True))
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(Path(folder), cases=args.cases + 2, seed=SEED)
        images = sorted((Path(folder) / "imagesTr").iterdir())[: args.cases]
        table = pd.DataFrame([measure(path, path.parents[1] / "labelsTr" / path.name, network) for path in images])
    logger.info("%s", table.round(3).to_string(index=False))
    write_table(table.drop(columns=["seconds_accurate", "seconds_fast"]), RESULTS / "window_overlap.csv", decimals=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
