"""A CT from file to label map, by MONAI's components and by swin_bob_btcv: `python -m benchmarks.end_to_end`.

The ways (the third is the bundle with `inference_cpu.json`) run in processes of their own, with the network of the
bundle at feature size 48 and the same random weights, on `ct_torso` as it is and resampled to 1.5 mm. Writes
`results/end_to_end.csv` and `docs/end_to_end.png` of the bundle: seconds of each stage, the highest memory of the
process during it, and how many voxels of the label maps differ from MONAI's. Less than 20 minutes on two free cores;
`--spacing_mm 1.5 1.5 2` takes the grid of the bundle instead of one of 3 mm, and eight times as long.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import AsDiscreted, Compose, Invertd, SaveImaged
from nibabel.processing import resample_to_output

from benchmarks.restore import memory_mb
from scripts.common.files import write_table
from scripts.models.compiled import export_compiled

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "swin_bob_btcv"
CT = ROOT.parent / "shared" / "data" / "ct_torso" / "image.nii.gz"
RESULTS = Path(__file__).parent / "results"
CONFIGS = {"MONAI": ["inference.json"], "bundle": ["inference.json"]}
CONFIGS["compiled"] = ["inference.json", "inference_cpu.json"]
STOCK_WAY, *OURS = CONFIGS
INPUTS = {"3 mm": None, "1.5 mm": 1.5}
STAGES = ("load and preprocess", "network windows", "restore", "save")
STOCK = {
    "scripts.io.loading.LoadVolumed": {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
    "scripts.data.transforms.Spacingd": {"_target_": "Spacingd", "keys": "image", "mode": "bilinear"},
}
REPEATS = 3  # of all stages but the network
logger = logging.getLogger(__name__)


def parsed(way: str, folder: Path, args: argparse.Namespace) -> ConfigParser:
    """Read the configs of the bundle, with the settings of this benchmark."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in CONFIGS[way]])
    parser.read_meta(str(BUNDLE / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(folder), "output_dir": str(folder), "device": "$torch.device('cpu')"})
    parser.update({"spacing_mm": args.spacing_mm, "network_def#feature_size": args.feature_size})
    return parser


def stock_transforms(parser: ConfigParser) -> Compose:
    """Return the preprocessing of the bundle by transforms of MONAI alone."""
    transforms = parser["preprocessing"]["transforms"]
    for index, transform in enumerate(transforms):
        if stock := STOCK.get(transform["_target_"]):
            pixdim = {"pixdim": transform["pixdim"]} if "pixdim" in transform else {}
            transforms[index] = {**stock, **pixdim}
    return parser.get_parsed_content("preprocessing")


def components(way: str, folder: Path, args: argparse.Namespace) -> tuple[Any, ...]:
    """Return the preprocessing, inferer, and transforms that restore and save of a way."""
    parser = parsed(way, folder, args)
    if way in OURS:
        preprocessing, inferer, post = map(parser.get_parsed_content, ("preprocessing", "inferer", "postprocessing"))
        return preprocessing, inferer, post.transforms[0], Compose(post.transforms[1:])
    preprocessing = stock_transforms(parser)
    roi_size, sw_batch_size = parser["patch_size"], parser["sw_batch_size"]
    inferer = SlidingWindowInferer(roi_size, sw_batch_size, 0.5, mode="gaussian", padding_mode="replicate")
    invert = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False, device="cpu")
    save = SaveImaged("pred", output_dir=folder, separate_folder=False, output_dtype=np.uint8, resample=False)
    return preprocessing, inferer, Compose([invert, AsDiscreted("pred", argmax=True)]), save


def measure(way: str, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Segment `folder/image.nii.gz` into `folder`; return a row per stage."""
    preprocessing, inferer, restore, save = components(way, folder, args)
    network = parsed(way, folder, args).get_parsed_content("network")
    if way != "compiled":  # whose file holds the weights
        network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    case = {"image": str(folder / "image.nii.gz"), "case": "image"}
    rows = []

    def staged(stage: str, run: Callable[[], Any], repeats: int = REPEATS) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the stages before
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            result = run()
            seconds.append(time.perf_counter() - start)
        peak_gb = memory_mb("VmHWM") * 2**20 / 1e9
        rows.append({"stage": stage, "seconds": statistics.median(seconds), "peak_gb": peak_gb})
        return result

    with torch.no_grad():
        data = staged(STAGES[0], lambda: preprocessing(dict(case)))
        image = list_data_collate([data])["image"]
        data["pred"] = staged(STAGES[1], lambda: inferer(image, network.eval())[0], repeats=1)
        restored = staged(STAGES[2], lambda: restore(dict(data)))
        staged(STAGES[3], lambda: save(dict(restored)))
    return rows


def prepare(folder: Path, spacing_mm: float | None, args: argparse.Namespace) -> None:
    """Write the CT, resampled by nibabel if a spacing is given, random weights and the compiled network."""
    if spacing_mm is None:
        shutil.copy(CT, folder / "image.nii.gz")
    else:
        nib.save(resample_to_output(nib.load(CT), spacing_mm, order=1, cval=-1024), folder / "image.nii.gz")
    torch.manual_seed(0)
    (folder / "models").mkdir()
    weights = folder / "models" / "model.pt"
    parser = parsed("bundle", folder, args)
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), weights)
    with torch.no_grad():
        export_compiled(network, torch.zeros(1, 1, *parser["patch_size"]), weights, weights.with_suffix(".ov"))


def compare(name: str, spacing_mm: float | None, args: argparse.Namespace) -> pd.DataFrame:
    """Segment one CT in each way; return a row per way and stage, with the voxels that differ from MONAI's."""
    rows, label_maps = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, spacing_mm, args)
        for way in CONFIGS:
            options = ["--spacing_mm", *map(str, args.spacing_mm), "--feature_size", str(args.feature_size)]
            command = [sys.executable, "-m", "benchmarks.end_to_end", *options, "--one", temporary, way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            (written,) = {*folder.glob("image_*.nii.gz")}
            label_maps[way] = nib.load(written).get_fdata()
            written.unlink()
            stock = label_maps[STOCK_WAY]
            same = {"input": name, "way": way, "differing_voxels": int((label_maps[way] != stock).sum())}
            rows += [{**same, "voxels": stock.size, **row} for row in json.loads(done.stdout.splitlines()[-1])]
    logger.info("%s: %d labels", name, len(np.unique(stock)))
    return pd.DataFrame(rows)


def with_totals(table: pd.DataFrame) -> pd.DataFrame:
    """Add the sum of the seconds and the highest memory of each way, and the ratios to MONAI."""
    same = ["input", "way", "differing_voxels", "voxels"]
    totals = table.groupby(same, as_index=False, sort=False).agg({"seconds": "sum", "peak_gb": "max"})
    table = pd.concat([table, totals.assign(stage="all")])
    stock = table[table["way"] == STOCK_WAY].set_index(["input", "stage"])
    keys = pd.MultiIndex.from_frame(table[["input", "stage"]])
    for column, name in {"seconds": "time_ratio", "peak_gb": "memory_ratio"}.items():
        table[name] = table[column].to_numpy() / stock.loc[keys, column].to_numpy()
    return table


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds and memory of each stage: one row of bars per input and way."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    bars = [(name, way) for name in table["input"].unique() for way in CONFIGS]
    titles = {"seconds": "seconds, logarithmic", "peak_gb": "peak memory, GB"}
    for axes, (value, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for shift, stage in enumerate(STAGES):
            widths = table[table["stage"] == stage].set_index(["input", "way"])[value].loc[bars]
            places = [index + 0.2 * shift - 0.3 for index in range(len(bars))]
            axes.barh(places, widths, height=0.19, label=stage)
        axes.set_yticks(range(len(bars)), [f"{name}\n{way}" for name, way in bars])
        axes.invert_yaxis()
        axes.set_xlabel(title)
    figure.axes[0].set_xscale("log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(STAGES))
    figure.savefig(path, dpi=110)


def main() -> int:
    """Measure all ways on both inputs, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spacing_mm", nargs=3, type=float, default=[3.0, 3.0, 3.0], help="grid of the network")
    parser.add_argument("--feature_size", type=int, default=48)
    parser.add_argument("--inputs", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.chdir(BUNDLE)
    if args.one:
        sys.stdout.write("\n" + json.dumps(measure(args.one[1], Path(args.one[0]), args)))
        return 0
    if not CT.is_file():
        logger.error("%s is absent; this benchmark needs it", CT)
        return 1
    table = with_totals(pd.concat([compare(name, INPUTS[name], args) for name in args.inputs]))
    logger.info("%s", table.round(3).to_string(index=False))
    write_table(table, RESULTS / "end_to_end.csv", decimals=3)
    draw(table, BUNDLE / "docs" / "end_to_end.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
