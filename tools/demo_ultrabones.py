"""The demonstration of ultrabones: `python -m tools.demo_ultrabones`, or `make demo BUNDLE=ultrabones`.

Trains a reduced network on B-mode images computed from outlines of bone, scores it on specimens whose donor the
training never saw, and finds the bone of a tracked sweep in 3-D. With `--input`, it also segments real images. Leaves
`demo/ultrabones_demo/index.html`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from tools import demo
from tools.demo_page import Step, write_page
from tools.ultrasound_phantom import FIELD_MM
from tools.ultrasound_sweep import CALIBRATION, write_sweep

BUNDLE = demo.BUNDLES / "ultrabones"
SPECIMENS, FRAMES, SIZE = 8, 30, (205, 240)
REDUCED = {
    "network_def#blocks": [1, 1, 1, 1],
    "network_def#features": [16, 32, 64, 128],
    "network_def#pyramid_channels": 32,
    "network_def#segmentation_channels": 32,
    "image_size": 128,
    "num_workers": 0,
}
# A few minutes are too few for the published rate, and for five augmentations of each image.
TRAINING = {
    "max_epochs": 8,
    "val_interval": 8,
    "batch_size": 8,
    "learning_rate": 0.002,
    "augmentations": 1,
    "band_px": 1.5,  # about as many mm as the published 3 of 256 pixels
}
PIXEL_MM = [FIELD_MM[0] / SIZE[0], FIELD_MM[1] / SIZE[1]]
SHOWN_MM = (0.5, 1.0, 2.0)
SWEEP_FRAMES = 40


def prepare(out: Path, *, seed: int = 0) -> Step:
    """Write phantoms in the published folders, and their datalist."""
    made = ["-m", "tools.ultrasound_phantom", str(out / "data"), "--specimens", str(SPECIMENS), "--frames", str(FRAMES)]
    made += ["--seed", str(seed)]
    listed = ["-m", "scripts.prepare_ultrabones", str(out / "data"), "--test", "2"]
    commands = [demo.execute(words, demo.ROOT) for words in (made, listed)]
    text = f"{SPECIMENS} specimens of {FRAMES} frames, each computed from the outline of a bone: a bright surface, its "
    text += "shadow, and speckle. Those of one donor, two legs, are for test."
    return Step("Phantoms of B-mode images", text, commands)


def train_and_score(out: Path, *, seed: int = 0) -> Step:
    """Train the reduced network, and score the specimens for test."""
    folders = {"dataset_dir": str(out / "data"), "ckpt_dir": str(out / "models")}
    training = {**REDUCED, **TRAINING, **folders, "seed": seed, "output_dir": str(out / "runs")}
    commands = [demo.run(BUNDLE, training, "train.json")]
    scoring = {"eval_split": "test", "pixel_mm": PIXEL_MM, "output_dir": str(out / "eval")}
    commands.append(demo.run(BUNDLE, {**REDUCED, **folders, **scoring}, "train.json", "evaluate.json"))
    summary = pd.read_csv(out / "eval" / "summary.csv")
    table = summary[summary["tolerance_mm"].round(1).isin(SHOWN_MM)].drop(columns=["n_spurious", "n_both_empty"])
    f1 = summary.query("group == 'all' and tolerance_mm.round(1) == 1")["f1"].iloc[0]
    text = f"F1 at 1 mm is {f1:.3f} on the donor that the training never saw. Red is the outline of what was found, "
    text += "green that of the label."
    pictures = sorted((out / "eval").glob("*_preview.png"))[:4]
    return Step("Training and scores", text, commands, pictures, table=table.set_index("group"))


def sweep(out: Path, *, seed: int = 0) -> Step:
    """Segment a tracked sweep whose surface is known, and measure how far from it the points of bone are."""
    bone = write_sweep(out / "sweep", frames=SWEEP_FRAMES, size=SIZE, seed=seed)
    settings = {"input": str(out / "sweep" / "images"), "poses": str(out / "sweep" / "tracking.csv")}
    settings |= {"calibration": list(CALIBRATION), "pixel_mm": PIXEL_MM, "output_dir": str(out / "sweep_segmented")}
    command = demo.run(BUNDLE, {**REDUCED, **settings, "ckpt_path": str(out / "models" / "model.pt")}, "inference.json")
    distances_mm = bone.distances_mm(read_points(out / "sweep_segmented" / "sweep.ply"))
    table = pd.DataFrame({"points": [len(distances_mm)], "mean_mm": [distances_mm.mean()]})
    table["p95_mm"], table["largest_mm"] = np.percentile(distances_mm, [95, 100])
    text = (
        f"{SWEEP_FRAMES} frames over a bone that the training never saw, with the poses of the probe. The points are "
    )
    text += f"{distances_mm.mean():.2f} mm from its true surface on average; a pixel is {PIXEL_MM[0]:.2f} mm."
    return Step("A tracked sweep in 3-D", text, [command], [out / "sweep_segmented" / "sweep.png"], table=table)


def read_points(path: Path) -> np.ndarray:
    """Read the points, (N, 3), of a PLY file that the bundle wrote."""
    return np.frombuffer(path.read_bytes().partition(b"end_header\n")[2], "<f4").reshape(-1, 3)


def segment(out: Path, images: Path) -> Step:
    """Segment real images."""
    settings = {"input": str(images), "output_dir": str(out / "real"), "ckpt_path": str(out / "models" / "model.pt")}
    command = demo.run(BUNDLE, {**REDUCED, **settings}, "inference.json")
    table = pd.read_csv(out / "real" / "bones.csv", dtype={"case": str}).set_index("case")
    text = "The network was trained on phantoms alone: look, do not measure."
    return Step("Real images", text, [command], sorted((out / "real").glob("*_preview.png")), table=table)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="real images to segment: a picture, a DICOM file or a folder")
    folder = demo.ROOT / "demo" / "ultrabones_demo"
    parser.add_argument("--out", type=Path, default=folder, help="folder for all results (default: %(default)s)")
    options = parser.parse_args()
    out = options.out.resolve()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shutil.rmtree(out, ignore_errors=True)
    steps = [step(out) for step in (prepare, train_and_score, sweep)]
    steps += [segment(out, options.input.resolve())] if options.input else []
    write_page(out / "index.html", steps, title="Bone surfaces in ultrasound, on phantoms")
    logging.getLogger("demo").info("open %s", out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
