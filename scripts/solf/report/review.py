"""Which labels people review: those that the page shows in slices, and the ordinary organ beside each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.names import is_nifti
from scripts.data.inputs import list_cases

PER_CASE, PER_ORGAN = 2, 4
"""Labels of one case and of one organ among the worst in each round; see `ReviewSet`."""
KEPT_EVERY = 3
SEED = 0
_SUFFIX = "_0000"  # of the only channel of an image in nnU-Net's naming


@dataclass(frozen=True)
class ReviewOptions:
    """What the review shows; checked when it is made.

    Attributes:
        labels: how many labels are shown; 0 for no review.
        order: `worst`, `random` or the name of an organ; see `ReviewSet`.
        images: folder of the images that the label maps belong to, named as the cases, perhaps with nnU-Net's `_0000`;
            "" for none.
        crops: whether the rejected labels among them are written as crops, see `scripts.solf.report.crops`.
        organs: names of organs that `order` may be.
        cases: names of the cases.

    Raises:
        InputError: an option is out of its range, or no image in the folder belongs to a case.
    """

    labels: int = 200
    order: str = "worst"
    images: str | Path = ""
    crops: bool | str = False
    organs: Iterable[str] = ()
    cases: Iterable[str] = ()

    def __post_init__(self) -> None:
        if type(self.labels) is not int or self.labels < 0:
            raise InputError(f"review_labels is {self.labels!r}: give a whole number from 0.")
        if self.order not in ("worst", "random", *self.organs):
            raise InputError(f"review_order is {self.order!r}: give worst, random or the name of an organ.")
        object.__setattr__(self, "crops", parse_flag(self.crops, "crops"))
        object.__setattr__(self, "paths", _image_paths(self.images, set(self.cases)) if self.images else {})


def _image_paths(folder: str | Path, cases: set[str]) -> dict[str, str]:
    """Return the image of each case that has one."""
    found = {item["case"]: item["image"] for item in list_cases(folder) if is_nifti(Path(item["image"]))}
    found |= {name.removesuffix(_SUFFIX): path for name, path in found.items() if name.endswith(_SUFFIX)}
    if not cases & set(found):
        raise InputError(
            f"images is {folder}: none of its {len(found)} images has the name of a case, such as "
            f"{min(cases, default='case')}.nii.gz; name images as their label maps."
        )
    return {case: found[case] for case in cases & set(found)}


class ReviewSet:
    """Collects the labels to review, chunk by chunk.

    - `worst`: the rejected labels that are farthest outside, in rounds of at most PER_CASE of a case and PER_ORGAN of
      an organ, so that neither one truncated case nor one organ fills the list; every KEPT_EVERY-th is a label that was
      kept and is nearest to being rejected, because thresholds can be tuned only with labels from both sides. If there
      are too few rejected ones, more of these follow.
    - `random`: a sample of all labels.
    - the name of an organ: that organ of all people in order of name, or of a sample of them.

    Args:
        options: how many and which.
    """

    def __init__(self, options: ReviewOptions) -> None:
        self.options, self._rng = options, np.random.default_rng(SEED)
        self._pools: dict[str, pd.DataFrame] = {}

    def add(self, table: pd.DataFrame) -> None:
        """Add labels of the table of decisions.

        Args:
            table: with `case`, `label`, `organ`, `decision`, `margin` and what else is shown of a label.
        """
        table = table.assign(draw=self._rng.random(len(table)))[table["decision"] != "missing"]
        rejected, count = table["decision"] == "reject", self.options.labels
        if self.options.order == "worst":
            self._keep("rejected", table[rejected], "margin", 10 * count)
            self._keep("kept", table[~rejected & np.isfinite(table["margin"])], "margin", count)
        else:
            chosen = table if self.options.order == "random" else table[table["organ"] == self.options.order]
            self._keep("sample", chosen, "draw", count)

    def _keep(self, pool: str, table: pd.DataFrame, by: str, count: int) -> None:
        """Keep the rows of a pool and a table with the largest values."""
        held = [part for part in (self._pools.get(pool), table) if part is not None and len(part)]
        if held:
            self._pools[pool] = pd.concat(held).sort_values(by, ascending=False, kind="stable")[:count]

    def chosen(self) -> pd.DataFrame:
        """Return the labels in the order of the review."""
        nothing = pd.DataFrame(columns=["case", "label"])
        if self.options.order != "worst":
            sample = self._pools.get("sample", nothing)
            return sample if self.options.order == "random" else sample.sort_values("case", kind="stable")
        rejected, kept = (self._pools.get(name, nothing) for name in ("rejected", "kept"))
        return _mixed(_in_rounds(rejected), kept, self.options.labels)


def _in_rounds(table: pd.DataFrame) -> pd.DataFrame:
    """Order labels, farthest outside first, so that each round has few of one case and of one organ."""
    of_case = table.groupby("case").cumcount() // PER_CASE
    of_organ = table.groupby("label").cumcount() // PER_ORGAN
    return table.iloc[np.argsort(np.maximum(of_case, of_organ), kind="stable")]


def _mixed(rejected: pd.DataFrame, kept: pd.DataFrame, count: int) -> pd.DataFrame:
    """Make every KEPT_EVERY-th label one of the kept ones."""
    place = np.arange(len(rejected))
    place_of_rejected = place + place // (KEPT_EVERY - 1)
    place_of_kept = np.arange(1, len(kept) + 1) * KEPT_EVERY - 1
    both = [part for part in (rejected, kept) if len(part)] or [rejected]
    order = np.argsort(np.concatenate([place_of_rejected, place_of_kept]), kind="stable")
    return pd.concat(both).iloc[order][:count]
