"""How many slices must be labelled: Dice by the size of the support and of the ensemble."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.common.errors import InputError
from scripts.common.files import atomic_path, require_writable, write_table
from scripts.common.locks import FolderLock
from scripts.common.progress import progress_bar
from scripts.models.universeg import UniverSeg
from scripts.models.weights import load_weights
from scripts.universeg.inferer import draw_supports
from scripts.universeg.support import SupportSet

LeaveOut = Literal["auto", "case", "slice"]
LEAVE_OUT: tuple[LeaveOut, ...] = get_args(LeaveOut)
COLUMNS = ("case", "slice", "class", "support_size", "ensemble", "dice")
logger = logging.getLogger(__name__)


class SupportStudy:
    """Predict labelled slices by the example of the others, with more and more of these.

    For each class, each of up to `max_targets` slices that show it is the target once; its support is drawn from the
    other slices that show the class. Of each support size there are as many draws as the largest ensemble has; the Dice
    of a single draw is the mean over these. Dice is computed on the network's grid, as in the paper.

    Writes `scores.csv` (`COLUMNS`), `summary.csv` (mean Dice by class, support size and ensemble; "mean" is the mean of
    the classes that have all sizes that any has) and `support_size.png`.

    Args:
        support: the labelled slices.
        network: predicts; its weights are loaded from `ckpt_path`.
        ckpt_path: file of the weights.
        output_dir: folder of the tables and the plot.
        device: of the network.
        leave_out: what is left out with the target: "slice": nothing else, so that its neighbours may support it;
            "case": all slices of its image; "auto": the case, if there are several.
        support_sizes: numbers of support slices; those are left out for which there are too few slices.
        ensemble_sizes: numbers of draws whose probabilities are averaged.
        max_targets: targets of a class, drawn if there are more.
        seed: of all draws.
        threshold: probability above which a pixel belongs to the class.

    Raises:
        InputError: a setting is out of range; when it runs: there are too few labelled slices.
    """

    def __init__(
        self,
        *,
        support: SupportSet,
        network: UniverSeg,
        ckpt_path: str | Path,
        output_dir: str | Path,
        device: torch.device | str = "cpu",
        leave_out: LeaveOut = "auto",
        support_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
        ensemble_sizes: Sequence[int] = (1, 5),
        max_targets: int = 20,
        seed: int = 0,
        threshold: float = 0.5,
    ) -> None:
        if leave_out not in LEAVE_OUT:
            raise InputError(f"leave_out is {leave_out!r}: give one of {', '.join(LEAVE_OUT)}.")
        if not support_sizes or not ensemble_sizes or min(*support_sizes, *ensemble_sizes, max_targets) < 1:
            raise InputError("support_sizes, ensemble_sizes and max_targets: give numbers from 1.")
        self.support, self.network, self.ckpt_path = support, network, ckpt_path
        self.output_dir, self.device, self.leave_out = require_writable(output_dir), torch.device(device), leave_out
        self.support_sizes, self.ensemble_sizes = sorted(support_sizes), sorted(ensemble_sizes)
        self.max_targets, self.seed, self.threshold = max_targets, seed, threshold

    @torch.inference_mode()
    def run(self) -> pd.DataFrame:
        """Score all targets, write the tables and the plot, and return the summary."""
        load_weights(self.network, self.ckpt_path)
        self.network.eval()
        with FolderLock(self.output_dir):
            targets = list(self._targets())
            if not targets:
                raise InputError(
                    f"{self.support.source}: too few labelled slices; give at least two that show the same class"
                    + (", of different images, or set leave_out to slice." if self._whole_cases() else ".")
                )
            rows: list[dict[str, Any]] = []
            for channel, target, pool in progress_bar(iterable=targets, desc="targets", unit="target"):
                rows += self._scores(channel, target, pool)
            scores = pd.DataFrame(rows, columns=COLUMNS)
            summary = summarise(scores)
            write_table(scores, self.output_dir / "scores.csv")
            write_table(summary, self.output_dir / "summary.csv")
            plot(summary, self.output_dir / "support_size.png")
        table = summary[summary["class"] == "mean"].to_string(index=False, float_format="{:.3f}".format)
        logger.info("%d targets, tables and plot in %s\n%s", len(targets), self.output_dir, table)
        return summary

    def _whole_cases(self) -> bool:
        cases = {one.case for one in self.support.slices}
        return self.leave_out == "case" or (self.leave_out == "auto" and len(cases) > 1)

    def _targets(self) -> Iterator[tuple[int, int, list[int]]]:
        """Yield (channel, target, pool of its support)."""
        whole, slices = self._whole_cases(), self.support.slices
        for channel in self.support.values:
            showing = self.support.showing(channel)
            for target in draw_supports(showing, self.max_targets, 1, seed=(self.seed, channel))[0]:
                others = [place for place in showing if place != target]
                pool = [place for place in others if not whole or slices[place].case != slices[target].case]
                if len(pool) >= self.support_sizes[0]:
                    yield channel, target, pool

    def _scores(self, channel: int, target: int, pool: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the rows of one target."""
        one = self.support.slices[target]
        label = (one.label == self.support.values[channel]).to(self.device)
        for size in (size for size in self.support_sizes if size <= len(pool)):
            draws = draw_supports(pool, size, self.ensemble_sizes[-1], seed=(self.seed, channel, target, size))
            found = torch.stack([self._probability(one.image, channel, places) for places in draws])
            for ensemble in self.ensemble_sizes:
                means = found if ensemble == 1 else found[:ensemble].mean(0, keepdim=True)
                dice = float(np.mean([mask_dice(mean > self.threshold, label) for mean in means]))
                values = (one.case, one.index, self.support.class_names[channel], size, ensemble, dice)
                yield dict(zip(COLUMNS, values, strict=True))

    def _probability(self, image: torch.Tensor, channel: int, places: Sequence[int]) -> torch.Tensor:
        images, masks = (x.to(self.device) for x in self.support.tensors(places, channel))
        return self.network(image.to(self.device)[None, None], images, masks)[0, 0].float().sigmoid()


def mask_dice(pred: torch.Tensor, label: torch.Tensor) -> float:
    """Return the Dice of two masks, of which one is not empty.

    >>> mask_dice(torch.tensor([True, True]), torch.tensor([True, False]))
    0.6666666666666666
    """
    return 2 * int((pred & label).sum()) / int(pred.sum() + label.sum())


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean Dice by class, support size and ensemble, then that of the classes; see `SupportStudy`."""
    keys = ["class", "support_size", "ensemble"]
    classes = scores.groupby(keys, sort=False)["dice"].agg(["mean", "size"]).reset_index()
    classes = classes.rename(columns={"mean": "dice", "size": "n"})
    whole = classes.groupby("class")["support_size"].nunique()
    complete = classes[classes["class"].isin(whole[whole == whole.max()].index)]
    means = complete.groupby(keys[1:]).agg(dice=("dice", "mean"), n=("n", "sum")).reset_index()
    return pd.concat([classes, means.assign(**{"class": "mean"})[classes.columns]], ignore_index=True)


def plot(summary: pd.DataFrame, path: Path) -> None:
    """Draw Dice over support size, a line for each ensemble size."""
    figure = Figure(figsize=(6.0, 4.0), dpi=130, layout="constrained")
    axis = figure.add_subplot()
    for name, rows in summary[summary["ensemble"] == summary["ensemble"].min()].groupby("class"):
        if name != "mean":
            axis.plot(rows["support_size"], rows["dice"], color="0.8", linewidth=0.8)
            end = rows.iloc[-1]
            axis.annotate(name, (end["support_size"], end["dice"]), fontsize=7, color="0.5", ha="right", va="bottom")
    means = summary[summary["class"] == "mean"]
    for ensemble, rows in means.groupby("ensemble"):
        label = "one draw" if ensemble == 1 else f"ensemble of {ensemble} draws"
        axis.plot(rows["support_size"], rows["dice"], marker="o", label=label)
    axis.set_xscale("log", base=2)
    sizes = sorted(set(summary["support_size"]))
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set(xlabel="labelled slices in the support", ylabel="mean Dice (gray: single classes)", ylim=(0, 1))
    axis.legend(frameon=False)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
