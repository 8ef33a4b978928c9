"""How well each kind of prompt works: Dice by prompt, by number of clicks, and by how imprecise prompts are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from scripts.common.errors import InputError
from scripts.common.files import require_writable, write_table
from scripts.common.locks import FolderLock
from scripts.common.progress import progress_bar
from scripts.models.segvol import SegVol
from scripts.models.weights import load_weights
from scripts.segvol.clicks import simulate_clicks
from scripts.segvol.inferer import QUANTA, ZoomInferer
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.prompt_sampling import draw_points, jittered_box, jittered_points, tight_box
from scripts.segvol.study_plot import plot
from scripts.segvol.training import MIXES

COLUMNS = ("case", "organ", "prompt", "clicks", "jitter", "dice")
POSITIVE, NEGATIVE = 4, 3
"""Points of a prompt, as in the published inference."""
MEAN = "mean"
logger = logging.getLogger(__name__)


class PromptStudy:
    """Segment each organ of labelled cases by prompts that are drawn from its label, and score the masks.

    - Each of `MIXES`: a tight box, four points in and three outside of the organ, its name.
    - Clicks: first in the middle of the organ, then in the largest error; see `scripts.segvol.clicks`.
    - Jitter: the box, or the points, moved at random by a share of the organ's extent.

    A prompt that the inferer refuses, such as points in lungs that are as dark as air, finds nothing.

    Dice is 2 |P and L| / (|P| + |L|) over the voxels of the file, less the air around the patient, which is cut off.

    Writes `scores.csv` (`COLUMNS`), `summary.csv` (mean Dice by organ, prompt, clicks and jitter; the organ "mean" is
    the mean of the organs) and `prompts.png`.

    Args:
        cases: of a datalist, with labels.
        transform: loads image and label and puts them on the grid of the network's volume, (1, D, H, W).
        network: predicts; its weights are loaded from `ckpt_path`.
        inferer: as in inference; its own prompts are not read.
        class_names: class id to name, which is the text.
        ckpt_path: file of the weights.
        output_dir: folder of the tables and the plot.
        device: of the network.
        clicks: numbers of clicks to score.
        jitter: shares of the extent of the organ; see `scripts.segvol.prompt_sampling`.
        seed: of all draws.

    Raises:
        InputError: a setting is out of range, or no label shows an organ.
    """

    def __init__(
        self,
        *,
        cases: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], Mapping[str, Any]],
        network: SegVol,
        inferer: ZoomInferer,
        class_names: Mapping[int, str],
        ckpt_path: str | Path,
        output_dir: str | Path,
        device: torch.device | str = "cpu",
        clicks: Sequence[int] = (1, 3, 5, 10),
        jitter: Sequence[float] = (0.1, 0.2, 0.3),
        seed: int = 0,
    ) -> None:
        if min(clicks, default=1) < 1 or min(jitter, default=1) <= 0:
            raise InputError(f"clicks is {clicks} and jitter {jitter}: give numbers from 1, and shares above 0.")
        self.cases, self.transform, self.network, self.inferer = cases, transform, network, inferer
        self.class_names, self.ckpt_path, self.output_dir = class_names, ckpt_path, require_writable(output_dir)
        self.device, self.clicks, self.jitter, self.seed = torch.device(device), sorted(clicks), sorted(jitter), seed

    @torch.inference_mode()
    def run(self) -> pd.DataFrame:
        """Score all cases, write the tables and the plot, and return the summary."""
        load_weights(self.network, self.ckpt_path)
        self.network.eval()
        with FolderLock(self.output_dir):
            rows: list[dict[str, Any]] = []
            for number, case in enumerate(progress_bar(iterable=self.cases, desc="cases", unit="case")):
                rows += self._scores(case, np.random.RandomState([self.seed, number]))
            if not rows:
                raise InputError("no label shows an organ: give other cases, or another eval_split.")
            scores = pd.DataFrame(rows, columns=COLUMNS)
            summary = summarise(scores)
            write_table(scores, self.output_dir / "scores.csv")
            write_table(summary, self.output_dir / "summary.csv")
            plot(summary[summary["organ"] == MEAN], self.output_dir / "prompts.png")
        table = (
            summary[summary["organ"] == MEAN].drop(columns="organ").to_string(index=False, float_format="{:.3f}".format)
        )
        logger.info("%d cases, tables and plot in %s\n%s", len(self.cases), self.output_dir, table)
        return summary

    def _scores(self, case: Mapping[str, Any], rng: np.random.RandomState) -> Iterator[dict[str, Any]]:
        """Yield the rows of one case."""
        loaded = self.transform({key: case[key] for key in ("image", "label", "case")})
        image, label = loaded["image"][None].to(self.device), loaded["label"][0].numpy()
        for class_id, name in self.class_names.items():
            mask = label == class_id
            if mask.any():
                organ = _Organ(self, image, mask, name)
                for prompt, clicks, jitter, pred in organ.predictions(rng):
                    dice = 2 * int((pred & mask).sum()) / int(pred.sum() + mask.sum())
                    yield dict(zip(COLUMNS, (case["case"], name, prompt, clicks, jitter, dice), strict=True))


class _Organ:
    """One organ of one image, and what the network finds of it."""

    def __init__(self, study: PromptStudy, image: torch.Tensor, mask: np.ndarray, name: str) -> None:
        self.study, self.image, self.mask, self.name = study, image, mask, name
        self.box = tight_box(mask)
        self.extent = self.box[3:] - self.box[:3] + 1
        self.to_file = np.linalg.inv(np.asarray(image.meta["original_affine"]).reshape(-1, 4, 4)[0])
        self.to_file = self.to_file @ np.asarray(image.affine).reshape(-1, 4, 4)[0]

    def predictions(self, rng: np.random.RandomState) -> Iterator[tuple[str, int, float, np.ndarray]]:
        """Yield prompt, number of clicks (0 for others), jitter and mask."""
        length = POSITIVE + NEGATIVE
        points, labels = draw_points(self.mask, rng, positive=POSITIVE, negative=NEGATIVE, length=length)
        for mix in MIXES:
            yield mix, 0, 0.0, self.predict(mix.split("+"), points, labels, self.box)
        for jitter in self.study.jitter:
            box = jittered_box(self.box, self.mask.shape, rng, share=jitter)
            moved = jittered_points(points, labels, self.extent, self.mask.shape, rng, share=jitter)
            for kind in ("box", "points"):
                yield kind, 0, jitter, self.predict([kind], moved, labels, box)
        if self.study.clicks:
            found = simulate_clicks(self._clicked, self.mask, clicks=self.study.clicks[-1], spacing=self._spacing())
            for number, pred in enumerate(found, start=1):
                if number in self.study.clicks:
                    yield "clicks", number, 0.0, pred

    def _clicked(self, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.predict(["points"], points, labels, self.box)

    def _spacing(self) -> np.ndarray:
        return nib.affines.voxel_sizes(np.asarray(self.image.affine).reshape(-1, 4, 4)[0])

    def predict(self, kinds: Sequence[str], points: np.ndarray, labels: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Return the mask (D, H, W) of some kinds of prompts."""
        given: dict[str, Any] = {"text": self.name} if "text" in kinds else {}
        if "points" in kinds:
            given |= {"points": self._in_file(points[labels == 1]), "negative": self._in_file(points[labels == 0])}
        if "box" in kinds:
            corners = np.array(self._in_file(box.reshape(2, 3)))
            given["box"] = (*corners.min(axis=0), *corners.max(axis=0))
        prompt = Prompt(name=self.name, class_id=1, **given)
        try:
            found = self.study.inferer.segment(self.image, self.study.network, [prompt])
        except InputError as error:
            logger.warning("%s, which finds nothing then", error)
            return np.zeros(self.mask.shape, dtype=bool)
        return found[0, 0].numpy() > QUANTA // 2

    def _in_file(self, voxels: np.ndarray) -> tuple[tuple[float, ...], ...]:
        """Turn voxels of the image into those of its file, whose axes have another order or direction."""
        return tuple(map(tuple, np.rint(nib.affines.apply_affine(self.to_file, voxels)).tolist()))


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean Dice by organ, prompt, clicks and jitter, then that of the organs; see `PromptStudy`."""
    keys = ["prompt", "clicks", "jitter"]
    organs = scores.groupby(["organ", *keys], sort=False)["dice"].agg(["mean", "size"]).reset_index()
    organs = organs.rename(columns={"mean": "dice", "size": "n"})
    means = organs.groupby(keys, sort=False).agg(dice=("dice", "mean"), n=("n", "sum")).reset_index()
    return pd.concat([organs, means.assign(organ=MEAN)[organs.columns]], ignore_index=True)
