"""The demonstration of ultrabones: `python -m tools.demo_ultrabones`, or `make demo BUNDLE=ultrabones`.

Trains a reduced network on B-mode images computed from outlines of bone, scores it on specimens whose donors the
training never saw, and segments their frames. With `--input`, also real images. Leaves
`demo/ultrabones_demo/index.html`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

import pandas as pd

from tools import demo
from tools.demo_page import Step, write_page
from tools.ultrasound_phantom import FIELD_MM

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


def prepare(out: Path) -> Step:
    """Write phantoms in the published folders, and their datalist."""
    made = ["-m", "tools.ultrasound_phantom", str(out / "data"), "--specimens", str(SPECIMENS), "--frames", str(FRAMES)]
    listed = ["-m", "scripts.prepare_ultrabones", str(out / "data"), "--test", "2"]
    commands = [demo.execute(words, demo.ROOT) for words in (made, listed)]
    text = f"{SPECIMENS} specimens of {FRAMES} frames, each computed from the outline of a bone: a bright surface, its "
    text += "shadow, and speckle. Those of one donor, two legs, are for test."
    return Step("Phantoms of B-mode images", text, commands)


def train_and_score(out: Path) -> Step:
    """Train the reduced network, and score the specimens for test."""
    folders = {"dataset_dir": str(out / "data"), "ckpt_dir": str(out / "models")}
    commands = [demo.run(BUNDLE, {**REDUCED, **TRAINING, **folders, "output_dir": str(out / "runs")}, "train.json")]
    scoring = {"eval_split": "test", "pixel_mm": PIXEL_MM, "output_dir": str(out / "eval")}
    commands.append(demo.run(BUNDLE, {**REDUCED, **folders, **scoring}, "train.json", "evaluate.json"))
    summary = pd.read_csv(out / "eval" / "summary.csv")
    table = summary[summary["tolerance_mm"].round(1).isin(SHOWN_MM)].drop(columns=["n_spurious", "n_both_empty"])
    f1 = summary.query("group == 'all' and tolerance_mm.round(1) == 1")["f1"].iloc[0]
    text = f"F1 at 1 mm is {f1:.3f} on the donor that the training never saw. Red is the outline of what was found, "
    text += "green that of the label."
    pictures = sorted((out / "eval").glob("*_preview.png"))[:3]
    return Step("Training and scores", text, commands, pictures, table=table.set_index("group"))


def segment(out: Path, images: Path, title: str, text: str) -> Step:
    """Segment images; of real ones, the size of a pixel is not known."""
    settings = {"input": str(images), "ckpt_path": str(out.parent / "models" / "model.pt"), "output_dir": str(out)}
    command = demo.run(BUNDLE, {**REDUCED, **settings}, "inference.json")
    table = pd.read_csv(out / "bones.csv", dtype={"case": str}).set_index("case")
    return Step(title, text, [command], sorted(out.glob("*_preview.png")), table=table)


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
    steps = [step(out) for step in (prepare, train_and_score)]
    if options.input:
        text = "Images that are not phantoms. The network was trained on phantoms alone: do not measure by it."
        steps.append(segment(out / "real", options.input.resolve(), "Real images", text))
    write_page(out / "index.html", steps, title="Bone surfaces in ultrasound, on phantoms")
    logging.getLogger("demo").info("open %s", out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
