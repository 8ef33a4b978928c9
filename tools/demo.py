"""The demonstration: `python -m tools.demo [--input IMAGE --label LABEL]`.

Follows the paper at small size, on phantoms and by the commands that a user would type: Dixon archives become volumes,
their noisy label maps are cleaned, a network is pretrained on them and fine-tuned on CT, beside one from scratch on the
same budget. Leaves `demo/index.html`, a page of all steps. With a real pair of files, the fine-tuned network is
fine-tuned on that, and `demo/pair/` gets its results.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.common.organs import ORGANS
from scripts.common.threads import SETTINGS
from tools.demo_page import Step, draw_bars, draw_label_maps, write_page
from tools.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[1]
PLAIN_WORD = re.compile(r"[\w./#=-]+")
BUNDLES = ROOT / "bundles"
PRETRAIN, FINE_TUNE, FILTER = (BUNDLES / name for name in ("swin_bob_pretrain", "swin_bob_btcv", "solf_filter"))
SUBJECTS, FILTER_SUBJECTS = 8, 60
SPLIT = ("--validation", "1", "--test", "1")
REDUCED_NETWORK = {
    "network_def#feature_size": 12,
    "network_def#depths": [1, 1, 1, 1],
    "network_def#window_size": 4,
    "patch_size": [64, 64, 64],
    "sw_batch_size": 1,
    "num_workers": 0,
}
# A few minutes are too few to average out augmentation; they need a high rate and a push for the small organs.
REDUCED_TRAINING = {
    "network_def#use_checkpoint": False,
    "loss#batch": True,
    "warmup_epochs": 2,
    "learning_rate": 0.01,
    "crops_per_case": 1,
    "batch_size": 1,
    "flip_prob": 0,
    "intensity_prob": 0,
}
PRETRAINING = {"max_epochs": 16, "val_interval": 16, "spacing_mm": [6.0, 6.0, 6.0], "channel_drop_prob": 0.1}
WEIGHTS_OF_ORGANS = "$torch.tensor([0.3, 1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2, 4, 4])"
BTCV = {"spacing_mm": [4.0, 4.0, 4.0], "rotate_prob": 0, "loss#weight": WEIGHTS_OF_ORGANS}
FINE_TUNING = {"max_epochs": 24, "val_interval": 8}
PAIR = {"max_epochs": 120, "val_interval": 15, "learning_rate": 0.004, "crops_per_case": 2, "allow_overlap": True}
SCORES = ["mean_dice", "mean_hd95_mm", "mean_asd_mm", "mean_surface_dice"]
logger = logging.getLogger("demo")


def execute(words: Sequence[str], folder: Path) -> str:
    """Print and run a command with this Python, and return it as it is typed.

    Raises:
        SystemExit: the command failed.
    """
    typed = " ".join(word if PLAIN_WORD.fullmatch(word) else f'"{word}"' for word in ["python", *words])
    shown = f"cd {folder.relative_to(ROOT)}; " if folder != ROOT else ""
    typed = shown + typed.replace("$", "\\$")
    logger.info("\n$ %s\n", typed)
    environment = {**SETTINGS, **os.environ}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the command above failed with exit code {done.returncode}")
    return typed


def run(bundle: Path, settings: dict[str, Any], *configs: str) -> str:
    """Run a bundle; see `execute`."""
    paths = [f"configs/{name}" for name in configs]
    words = ["-m", "monai.bundle", "run", "--config_file", str(paths) if len(paths) > 1 else paths[0]]
    for key, value in settings.items():
        words += [f"--{key}", str(value) if isinstance(value, str | bool) else json.dumps(value)]
    return execute(words, bundle)


def prepare(out: Path) -> Step:
    """Write archives of phantoms and turn them into volumes of four channels."""
    made = ["-m", "tools.dixon_cohort", str(out), "--subjects", str(SUBJECTS)]
    volumes = ["-m", "scripts.prepare_ukbb", str(out / "archives"), str(out), "--slice_spacing_mm", "6"]
    commands = [execute(words, ROOT) for words in (made, volumes)]
    found = pd.read_csv(out / "subjects.csv")
    text = (
        f"{len(found)} archives of {SUBJECTS} phantoms, six stations each, became volumes of fat, water, in-phase and "
    )
    text += "opposed-phase. The picture is for a look at each subject."
    return Step("From archives to volumes", text, commands, [next((out / "qc").glob("*.png"))])


def clean(out: Path, cohort: Path) -> Step:
    """Fit the label filter on a cohort of label maps with errors, and clean those of the volumes."""
    commands = [
        execute(["-m", "tools.dixon_cohort", str(out), "--labels"], ROOT),
        execute(["-m", "tools.label_cohort", str(cohort), "--subjects", str(FILTER_SUBJECTS)], ROOT),
        run(
            FILTER,
            {
                "dataset_dir": str(cohort / "labels"),
                "output_dir": str(cohort / "fit"),
                "ckpt_dir": str(cohort / "models"),
                "qc": False,
            },
            "train.json",
        ),
        run(
            FILTER,
            {
                "input": str(out / "labels"),
                "ckpt_path": str(cohort / "models" / "model.pt"),
                "output_dir": str(out / "cleaned"),
                "qc": True,
            },
            "inference.json",
        ),
        execute(
            ["-m", "scripts.prepare_pairs", *(str(out / name) for name in ("images", "cleaned", "data")), *SPLIT], ROOT
        ),
    ]
    decisions = pd.read_csv(out / "cleaned" / "decisions.csv")
    wrong = pd.read_csv(out / "errors.csv")
    rejected = decisions[decisions["decision"] == "reject"]
    merged = rejected.merge(wrong, on=["case", "label"], how="left", indicator=True)
    found, others = int((merged["_merge"] == "both").sum()), int((merged["_merge"] == "left_only").sum())
    right = len(decisions) - len(wrong)
    text = (
        f"Of {len(wrong)} wrong labels the filter rejected {found}, and {others} of {right} right ones. It was fitted "
    )
    text += f"on {FILTER_SUBJECTS} other label maps, with errors too. What it rejects (white) carries no loss."
    case = str(wrong["case"].mode()[0])
    maps = {"labels": out / "labels", "cleaned": out / "cleaned", "without errors": out / "truth"}
    files = {name: next(folder.glob(f"{case}*.nii.gz")) for name, folder in maps.items()}
    draw_label_maps(files, out / "cleaned.png")
    table = merged[["case", "organ", "reason", "kind"]].set_axis(["case", "rejected", "reason", "true error"], axis=1)
    links = {"QC report": out / "cleaned" / "qc" / "index.html"}
    return Step("Noisy labels, cleaned (SOLF)", text, commands, [out / "cleaned.png"], links, table.set_index("case"))


def pretrain(out: Path) -> Step:
    """Pretrain on the cleaned labels, and score the test subject."""
    settings = {**REDUCED_NETWORK, **REDUCED_TRAINING, **PRETRAINING, "dataset_dir": str(out / "data")}
    settings |= {"ckpt_dir": str(out / "models"), "cache_dir": str(out / "store")}
    commands = [
        run(PRETRAIN, {**settings, "output_dir": str(out / "runs")}, "train.json"),
        run(
            PRETRAIN, {**settings, "output_dir": str(out / "eval"), "eval_split": "test"}, "train.json", "evaluate.json"
        ),
    ]
    subject = json.loads((out / "data" / "dataset_0.json").read_text())["test"][0]
    maps = {"network": next((out / "eval").glob("*_seg.nii.gz")), "cleaned label": out / "data" / subject["label"]}
    maps["without errors"] = out / "truth" / Path(subject["image"]).name
    draw_label_maps(maps, out / "pretrained.png")
    summary = pd.read_csv(out / "eval" / "summary.csv", index_col="organ")
    largest = summary.drop(index="mean").nlargest(10, "mean_dice")[["mean_dice"]]
    text = f"After {PRETRAINING['max_epochs']} epochs the mean Dice on a held-out subject is "
    text += (
        f"{summary['mean_dice']['mean']:.3f} over the organs that it has, against its cleaned labels; the table has "
    )
    text += f"the best ten. The paper trains 3,000 epochs on tens of thousands. Classes: {len(ORGANS) + 1}."
    return Step("Pretraining (Swin-BOB)", text, commands, [out / "pretrained.png"], table=largest)


def fine_tune(out: Path, pretrained: Path) -> Step:
    """Fine-tune on CT phantoms from pretrained weights and from scratch, on the same budget, and score both."""
    write_cohort(out / "data", cases=10, seed=0)
    ways = {"pretrained": {"pretrained": str(pretrained)}, "from scratch": {}}
    commands, dice = [], {}
    for name, start in ways.items():
        folder = out / name.replace(" ", "_")
        commands += train_and_score(folder, out / "data", {**FINE_TUNING, **start})
        dice[name] = pd.read_csv(folder / "summary.csv", index_col="organ")["mean_dice"]
    table = pd.DataFrame(dice)
    draw_bars(table, out / "dice.png", label="Dice on the held-out CT phantom")
    means = table.loc["mean"]
    shutil.copyfile(out / means.idxmax().replace(" ", "_") / "models" / "model.pt", out / "model.pt")
    text = f"The same {FINE_TUNING['max_epochs']} epochs on eight CT phantoms, of another anatomy than the Dixon ones: "
    text += f"mean Dice on a held-out one {means['pretrained']:.3f} from the pretrained weights and "
    text += f"{means['from scratch']:.3f} from scratch. The one {means.idxmax()} won, in this run of one seed."
    return Step("Fine-tuning on CT (swin_bob_btcv)", text, commands, [out / "dice.png"], table=table)


def segment(out: Path, ckpt_path: Path) -> Step:
    """Segment the held-out CT phantom with preview and GIF."""
    settings = {**REDUCED_NETWORK, "spacing_mm": BTCV["spacing_mm"], "dataset_dir": str(out / "data")}
    settings |= {"output_dir": str(out), "ckpt_path": str(ckpt_path), "gif": True}
    command = run(FINE_TUNE, settings, "inference.json")
    pictures = [*out.glob("*_preview.png"), *out.glob("*.gif")]
    tables = {path.name: path for path in sorted(out.glob("*.csv"))}
    text = "The label map on the image's own grid, a picture, slices as a GIF, and the volumes of the organs."
    return Step("Segmenting a CT", text, [command], pictures, tables)


def train_and_score(out: Path, data: Path, schedule: dict[str, Any]) -> list[str]:
    """Train `swin_bob_btcv` and score its test case; return the commands.

    Args:
        out: folder of the results.
        data: the data set.
        schedule: settings of the training.
    """
    settings = {**REDUCED_NETWORK, **REDUCED_TRAINING, **BTCV, **schedule, "dataset_dir": str(data)}
    settings["ckpt_dir"] = str(out / "models")
    return [
        run(FINE_TUNE, {**settings, "output_dir": str(out / "runs")}, "train.json"),
        run(FINE_TUNE, {**settings, "output_dir": str(out), "eval_split": "test"}, "train.json", "evaluate.json"),
    ]


def story(out: Path) -> None:
    """Run all steps and write the page."""
    start = time.monotonic()
    steps = []

    def done(step: Step) -> None:
        steps.append(step)
        write_page(out / "index.html", steps, title="UKBOB at small size, on phantoms")
        logger.info("\n%s: %s (%.1f minutes so far)", step.title, step.text, (time.monotonic() - start) / 60)

    done(prepare(out / "ukbb"))
    done(clean(out / "ukbb", out / "label_maps"))
    done(pretrain(out / "ukbb"))
    done(fine_tune(out / "ct", out / "ukbb" / "models" / "model.pt"))
    done(segment(out / "ct", out / "ct" / "model.pt"))
    logger.info("\nOpen %s", out / "index.html")


def pair(out: Path, image: Path, label: Path, pretrained: Path) -> None:
    """Fine-tune on a real pair, score and segment it, and print the scores and where everything is."""
    write_pair(out / "data", image, label)
    train_and_score(out, out / "data", {**PAIR, "pretrained": str(pretrained)})
    segment(out, out / "models" / "model.pt")
    summary = pd.read_csv(out / "summary.csv", index_col="organ")
    logger.info("\n%s", summary[SCORES].to_string(float_format="%.3f"))
    mean = summary["mean_dice"]["mean"]
    logger.info("\nMean Dice on the scan that it was fine-tuned on, an overfit check: %.3f. Look at", mean)
    for path in sorted(out.glob("*.*")):
        logger.info("  %s", path)


def write_pair(out: Path, image: Path, label: Path) -> None:
    """Make a data set of one real pair, which is trained on and measured: an overfit check.

    Args:
        out: folder for the data set.
        image: NIfTI image.
        label: NIfTI label map on its grid.

    Raises:
        SystemExit: a file does not exist.
    """
    case = {}
    for key, source in (("image", image), ("label", label)):
        if not source.is_file():
            raise SystemExit(f"{source}: no such file; give --{'input' if key == 'image' else 'label'} another")
        target = out / f"{key}s" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        case[key] = str(target.relative_to(out))
    content = {name: [case] for name in ("training", "validation", "test")}
    (out / "dataset_0.json").write_text(json.dumps(content, indent=4))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="a real image to fine-tune on and segment")
    parser.add_argument("--label", type=Path, help="its label map in BTCV's numbering")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for all results (default: demo)")
    args = parser.parse_args(argv)
    if (args.input is None) != (args.label is None):
        parser.error("--input and --label go together: training needs both")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out.resolve()
    weights = out / "ct" / "model.pt"
    if args.input is None or not weights.is_file():
        shutil.rmtree(out, ignore_errors=True)
        story(out)
    if args.input is not None:
        shutil.rmtree(out / "pair", ignore_errors=True)
        pair(out / "pair", args.input, args.label, weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
