"""Learn crops of one phantom, then segment it by windows: `python -m benchmarks.segvol_crops [--steps N]`.

Tells apart whether windows are poor because a network did not learn crops, or because they ask something else than
training does. A reduced network learns tight boxes in crops of a single phantom, at twice the resolution of
`segvol_prompts`. Then the phantom is segmented by the boxes of its organs, in windows, with its label in place of what
the whole volume shows. Writes `results/segvol_crops.csv`: mean Dice of the crops of the last 100 steps that show an
organ, and Dice of the organ by windows.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.transforms import Compose, CropForegroundd, EnsureTyped
from torch.nn.functional import interpolate

from benchmarks.segvol_prompts import REDUCED, RESULTS, write_data
from scripts.common.files import write_table
from scripts.common.locks import FolderLock
from scripts.data.places import ForegroundPlacesd
from scripts.io.loading import LoadVolumed
from scripts.models.segvol import SegVol
from scripts.segvol.coarse import QUANTA
from scripts.segvol.inferer import ZoomInferer
from scripts.segvol.losses import PromptLoss
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.prompt_sampling import tight_box
from scripts.segvol.prompts import PromptBook
from scripts.segvol.samples import DrawPromptsd, RandZoomOrCropd
from scripts.segvol.transforms import OrientSlicesFirstd, ScaleForegroundd

KEYS = ["image", "label"]
SIZE, BATCH, RATE, WARMUP, SHOWN = (32, 32, 32), 8, 0.001, 50, 100
logger = logging.getLogger("segvol_crops")


class LabelFirst(torch.nn.Module):
    """The network, which shows the label of an organ of the whole volume, and itself in windows."""

    def __init__(self, network: SegVol, mask: torch.Tensor) -> None:
        super().__init__()
        self.network, self.image_encoder, self.spatial_size = network, network.image_encoder, network.spatial_size
        small = interpolate(mask[None, None].float(), size=SIZE, mode="nearest-exact")
        self.first: torch.Tensor | None = torch.where(small > 0, 9.0, -9.0)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.encode_image(image)

    def decode(self, embedding: torch.Tensor, **prompts: torch.Tensor | None) -> torch.Tensor:
        shown, self.first = self.first, None
        return self.network.decode(embedding, **prompts) if shown is None else shown


def load_case(folder: Path) -> tuple[dict, dict[int, str]]:
    """Return the first phantom as training sees it, and the names of its organs."""
    content = json.loads((folder / "dataset_0.json").read_text())
    steps = [LoadVolumed(KEYS), OrientSlicesFirstd(KEYS), ScaleForegroundd("image")]
    load = Compose([*steps, CropForegroundd(KEYS, source_key="image"), EnsureTyped(KEYS), ForegroundPlacesd()])
    names = {int(key): name for key, name in content["labels"].items() if int(key)}
    return load({key: str(folder / content["training"][0][key]) for key in KEYS}), names


def batches(case: dict) -> Iterator[dict[str, torch.Tensor]]:
    """Yield crops that show an organ, with its box."""
    crop, draw = RandZoomOrCropd(KEYS, spatial_size=SIZE, crop_prob=1.0), DrawPromptsd(organs=1)
    crop.set_random_state(1)
    draw.set_random_state(2)
    samples = (sample for sample in (draw(crop(case)) for _ in iter(int, 1)) if sample["target"].any())
    while True:
        drawn = [next(samples) for _ in range(BATCH)]
        yield {key: torch.stack([one[key] for one in drawn]) for key in drawn[0]}


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the Dice of two masks."""
    return 2 * int((one & other).sum()) / int(one.sum() + other.sum())


def train(case: dict, *, steps: int) -> tuple[SegVol, dict[int, list[float]]]:
    """Return a network that learned the crops, and the Dice of the last of them by organ."""
    torch.manual_seed(0)
    sizes = {key.removeprefix("network_def#"): value for key, value in REDUCED.items() if "network_def" in key}
    network, loss = SegVol(**sizes).train(), PromptLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-5)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (0.525 + 0.475 * np.cos(np.pi * step / steps))
    )
    found: dict[int, list[float]] = {}
    for step, batch in zip(range(steps), batches(case), strict=False):
        logits = network(batch["image"], boxes=batch["boxes"][:, 0])
        optimizer.zero_grad()
        loss(logits, batch["target"]).backward()
        optimizer.step()
        cosine.step()
        scores = [dice(one > 0, target > 0) for one, target in zip(logits, batch["target"], strict=True)]
        if step % SHOWN == 0:
            logger.info("step %d: Dice of its crops %.2f", step, np.mean(scores))
        for organ, score in zip(batch["organs"][:, 0].tolist(), scores, strict=True):
            if step >= steps - SHOWN:
                found.setdefault(organ, []).append(score)
    return network.eval(), found


@torch.inference_mode()
def by_windows(network: SegVol, case: dict, organ: int) -> float:
    """Return the Dice of an organ that its box means, by the windows of inference."""
    image, mask = case["image"], case["label"][0].as_tensor() == organ
    corners = nib.affines.apply_affine(np.asarray(image.affine), tight_box(mask.numpy()).reshape(2, 3))
    prompt = Prompt("organ", box=(*corners.min(axis=0), *corners.max(axis=0)), space="RAS")
    found = ZoomInferer(PromptBook()).segment(image[None], LabelFirst(network, mask), [prompt])
    return dice(found[0, 0] > QUANTA // 2, mask)


def main() -> int:
    """Train and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: 1500)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        case, names = load_case(write_data(Path(folder), finer=2))
    network, crops = train(case, steps=args.steps)
    rows = [(name, np.mean(crops[organ]), by_windows(network, case, organ)) for organ, name in names.items()]
    table = pd.DataFrame(rows, columns=["organ", "crops", "windows"])
    table.loc[len(table)] = ["mean", *table[["crops", "windows"]].mean()]
    logger.info("\n%s", table.round(3).to_string())
    with FolderLock(RESULTS):
        write_table(table, RESULTS / "segvol_crops.csv", decimals=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
