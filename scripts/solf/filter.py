"""The label filter as a network: label map in, cleaned label map out; its weights are the thresholds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from scripts.common.errors import InputError
from scripts.solf.measuring import Transform, case_features
from scripts.solf.tables import IGNORE, feature_table, pack_features, read_label_table
from scripts.solf.thresholds import FEATURES, LEVELS, Thresholds, judge

Rejected = Literal["ignore", "background", "drop_case"]
REJECTED: tuple[Rejected, ...] = get_args(Rejected)
_ARRAYS = ("low", "high", "quantiles", "subjects", "voting")


class LabelFilter(nn.Module):
    """Reject the labels of a map whose features lie outside thresholds.

    Its buffers are the thresholds, which `scripts.solf.training.FilterTrainer` fits.

    Args:
        label_table: JSON file of label id to name; "" for the 72 organs of `scripts.common.organs`.
        rejected: what replaces rejected labels: `ignore` (255, which a loss must leave out, see
            `scripts.training.losses.MaskedDiceCELoss`), `background` (0, the published way, which teaches a model that
            the organ is absent) or `drop_case` (255, and in all voxels of a case of which more than `drop_share` of
            the labels are rejected).
        drop_share: see `rejected`.

    Shape:
        Input and output: (B, 1, X, Y, Z) of any dtype that holds 0 to 255; whole numbers.

    Raises:
        InputError: an option is out of its range.

    Source:
        UKBOB (arXiv 2504.06908), SOLF. The paper removes rejected labels; here `ignore` is the default.

    >>> from scripts.solf.fitting import fit_thresholds
    >>> from scripts.solf.tables import cohort_table
    >>> network, label = LabelFilter(), torch.zeros(1, 1, 12, 12, 12)
    >>> label[..., 2:9, 2:9, 2:9] = 1  # a spleen of 0.3 cm3
    >>> features = case_features(label[0, 0].byte().numpy(), np.eye(4), network.organs)
    >>> table = cohort_table([("case", features)], network.organs)
    >>> network.thresholds = fit_thresholds(table, organs=network.organs, rule="ranges")
    >>> network(label).unique()
    tensor([  0., 255.])
    """

    def __init__(self, *, label_table: str | Path = "", rejected: Rejected = "ignore", drop_share: float = 0.3) -> None:
        super().__init__()
        if rejected not in REJECTED:
            raise InputError(f"rejected is {rejected!r}: give one of {', '.join(REJECTED)}.")
        if not 0 <= drop_share <= 1:
            raise InputError(f"drop_share is {drop_share}: give a share from 0 to 1.")
        self.organs = read_label_table(label_table)
        self.rejected, self.drop_share = rejected, drop_share
        bounds = torch.full((len(self.organs), len(FEATURES)), torch.inf, dtype=torch.float64)
        quantiles = torch.full((len(LEVELS), *bounds.shape), torch.nan, dtype=torch.float64)
        self.register_buffer("table_id", torch.tensor(_table_id(self.organs)))
        self.register_buffer("low", -bounds)
        self.register_buffer("high", bounds)
        self.register_buffer("quantiles", quantiles)
        self.register_buffer("subjects", torch.zeros(len(self.organs), dtype=torch.int64))
        self.register_buffer("voting", torch.zeros(len(FEATURES), dtype=torch.bool))
        self.register_buffer("votes", torch.tensor(0))

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that the buffers hold.

        Raises:
            InputError: it was not fitted.
        """
        arrays = {name: getattr(self, name).cpu().numpy() for name in _ARRAYS}
        if not arrays["voting"].any():
            raise InputError("the label filter has no thresholds yet: fit it, or load the model.pt of a fit.")
        return Thresholds(organs=self.organs, votes=int(self.votes), **arrays)

    @thresholds.setter
    def thresholds(self, fitted: Thresholds) -> None:
        for name in _ARRAYS:
            getattr(self, name).copy_(torch.from_numpy(getattr(fitted, name)))
        self.votes.fill_(fitted.votes)

    def refuse_state(self, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
        """Refuse thresholds that were fitted with another label table; `scripts.models.weights` asks before loading.

        Raises:
            InputError: the tables differ.
        """
        if "table_id" in state and not torch.equal(state["table_id"], self.table_id.cpu()):
            raise InputError(
                f"{path}: its thresholds were fitted with another label table than these {len(self.organs)} labels; "
                "set label_table to that of the fit, or fit with this one."
            )

    def decide(self, features: np.ndarray) -> pd.DataFrame:
        """Decide about the labels of one case.

        Args:
            features: (L, C) of `scripts.solf.measuring.case_features`.

        Returns:
            See `scripts.solf.thresholds.judge`; `drop` for the other labels of a dropped case.
        """
        return self.with_drops(judge(feature_table(features, self.organs), self.thresholds))

    def with_drops(self, decisions: pd.DataFrame) -> pd.DataFrame:
        """Drop cases of which more than `drop_share` is rejected, if `rejected` is `drop_case`."""
        if self.rejected != "drop_case":
            return decisions
        cases = decisions["case"] if "case" in decisions else np.zeros(len(decisions))
        shares = (decisions["decision"] == "reject").groupby(cases).transform("mean")
        drops = (shares > self.drop_share) & (decisions["decision"] == "keep")
        reasons = shares.map("{:.0%} of the case's labels are rejected".format)
        columns = {
            "decision": decisions["decision"].mask(drops, "drop"),
            "reason": decisions["reason"].mask(drops, reasons),
        }
        return decisions.assign(**columns)

    def forward(self, label: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Clean label maps.

        Args:
            label: (B, 1, X, Y, Z); a MetaTensor's affine gives mm; without one, voxels are taken as 1 mm.
            features: (B, L, C) of `scripts.solf.measuring.case_features`, if they are known already.

        Returns:
            The cleaned maps, of the type of `label`.
        """
        cleaned = torch.empty_like(label)
        affine = np.asarray(getattr(label, "affine", torch.eye(4)))
        affines = np.broadcast_to(affine, (len(label), 4, 4))  # a batch has one each, a single case one
        for n, volume in enumerate(label):
            array = volume[0].cpu().numpy().astype(np.uint8, copy=False)
            if array.any():  # an empty map has no features
                known = features is not None
                own = features[n].cpu().numpy() if known else case_features(array, affines[n], self.organs)
                array = self._new_values(self.decide(own))[array]
            cleaned[n, 0] = torch.from_numpy(array).to(label.dtype)
        return cleaned

    def _new_values(self, decisions: pd.DataFrame) -> np.ndarray:
        """Return the new value of each label, (256,)."""
        if (decisions["decision"] == "drop").any():
            return np.full(256, IGNORE, dtype=np.uint8)
        values = np.arange(256, dtype=np.uint8)
        rejected = decisions.loc[decisions["decision"] == "reject", "label"]
        values[rejected] = 0 if self.rejected == "background" else IGNORE
        return values


def clean_case(
    case: Mapping[str, str], *, transform: Transform, network: LabelFilter, postprocessing: Transform
) -> bytes:
    """Read, measure, clean and write the label map of a case, and return its packed features."""
    item = transform(case)
    with torch.inference_mode():
        pred = network(item["image"][None], item["features"][None])[0]
    postprocessing({**item, "pred": pred})
    return pack_features(item["features"].numpy())


def _table_id(organs: Mapping[int, str]) -> int:
    """Return a checksum of a label table; part of the weights, so it must not depend on installed versions."""
    return zlib.crc32(json.dumps(sorted(organs.items())).encode())
