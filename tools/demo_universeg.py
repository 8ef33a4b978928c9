"""The demonstration of universeg: `python -m tools.demo_universeg`, or `make demo BUNDLE=universeg`.

Trains a reduced network on synthetic tasks and on organs of phantoms, tells how Dice grows with the number of labelled
slices, and propagates the labels of a few slices of another phantom to all of them, organs that the training never saw
included. Leaves `demo/universeg_demo/index.html`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from scripts.common.files import write_json
from tools import demo
from tools.demo_page import Step, write_page
from tools.phantom import write_cohort

BUNDLE = demo.BUNDLES / "universeg"
HELD_OUT = [1, 3, 6, 8]  # spleen, left kidney, liver, aorta
FEATURES, IMAGE_SIZE = [16, 16, 16, 16], 48
REDUCED = {"network_def#features": FEATURES, "image_size": IMAGE_SIZE, "intensity_range": [-175, 250], "num_workers": 0}
TRAINING = {
    "max_epochs": 3,
    "warmup_epochs": 0,
    "val_interval": 3,
    "episodes": 400,
    "val_episodes": 20,
    "support_size": 8,
    "batch_size": 4,
    "learning_rate": 0.001,
    "loss#_target_": "DiceCELoss",  # Dice alone learns nothing in the first minutes at such a rate
    "held_out_classes": HELD_OUT,
    "train#image_transforms": [],  # a few minutes are too few to average out augmentation
}
STUDY = {"support_sizes": [1, 2, 4, 8, 16], "ensemble_sizes": [1, 5], "max_targets": 4}
LABELLED_EVERY = 8


def train(out: Path) -> Step:
    """Train the reduced network."""
    write_cohort(out / "data", cases=5, seed=0)
    folders = {"dataset_dir": str(out / "data"), "ckpt_dir": str(out / "models"), "output_dir": str(out / "runs")}
    command = demo.run(BUNDLE, {**REDUCED, **TRAINING, **folders}, "train.json")
    text = "A reduced network saw 1200 episodes of synthetic tasks and of organs of phantoms, without those held out."
    return Step("Train by episodes", text, [command])


def study(out: Path) -> Step:
    """Predict labelled slices by the example of others."""
    settings = {**REDUCED, **STUDY, "ckpt_path": str(out / "models" / "model.pt"), "output_dir": str(out / "eval")}
    settings |= {"support": str(out / "data" / "dataset_0.json"), "input": str(out / "data" / "imagesTr")}
    command = demo.run(BUNDLE, settings, "inference.json", "evaluate.json")
    summary = pd.read_csv(out / "eval" / "summary.csv")
    table = summary[summary["class"] == "mean"].pivot(index="support_size", columns="ensemble", values="dice")
    picture = out / "eval" / "support_size.png"
    text = "Each slice is predicted by the example of slices of other phantoms: mean Dice by their number."
    return Step("How many slices must be labelled?", text, [command], [picture], table=table.round(3).reset_index())


def propagate(out: Path) -> Step:
    """Label every n-th slice of another phantom, and segment the rest."""
    content = json.loads((out / "data" / "dataset_0.json").read_text())
    files = {key: out / "data" / path for key, path in content["test"][0].items() if key in ("image", "label")}
    for kind in ("images", "labels"):
        (out / "scan" / kind).mkdir(parents=True, exist_ok=True)
    label = nib.load(files["label"])
    axis = next(i for i, code in enumerate(nib.aff2axcodes(label.affine)) if code in "SI")
    values = np.moveaxis(np.asarray(label.dataobj).copy(), axis, 0)
    values[np.arange(len(values)) % LABELLED_EVERY != LABELLED_EVERY // 2] = 0
    (out / "scan" / "images" / "scan.nii.gz").write_bytes(files["image"].read_bytes())
    nib.save(nib.Nifti1Image(np.moveaxis(values, 0, axis), label.affine), out / "scan" / "labels" / "scan.nii.gz")
    write_json(out / "scan" / "labels.json", content["labels"])
    settings = {"input": str(out / "scan" / "images"), "support": str(out / "scan"), "support_choice": "nearest"}
    settings |= {"ckpt_path": str(out / "models" / "model.pt"), "output_dir": str(out / "segmented"), "gif": True}
    command = demo.run(BUNDLE, {**REDUCED, **settings}, "inference.json")
    text = f"Every {LABELLED_EVERY}th slice of a phantom is labelled; the others are segmented by the nearest of these."
    pictures = [out / "segmented" / name for name in ("scan_preview.png", "scan.gif")]
    return Step("From a few labelled slices to the volume", text, [command], pictures)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = demo.ROOT / "demo" / "universeg_demo"
    parser.add_argument(
        "--out", type=Path, default=folder, help="folder for all results (default: demo/universeg_demo)"
    )
    out = parser.parse_args().out.resolve()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    steps = [step(out) for step in (train, study, propagate)]
    write_page(out / "index.html", steps, title="UniverSeg on phantoms")
    logging.getLogger("demo").info("open %s", out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
