"""The label filter as a network: label map in, cleaned label map out; its weights are the thresholds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from scripts.common.errors import InputError, raise_all
from scripts.common.organs import contralateral_labels
from scripts.common.settings import setting_problems
from scripts.solf.measuring import Transform, case_features
from scripts.solf.tables import IGNORE, feature_table, pack_features, read_label_table
from scripts.solf.thresholds import FEATURES, LEVELS, Thresholds, judge
from scripts.solf.verdicts import overruled, verdicts_of_case

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
        InputError: an option is out of its range, or the label table is refused.

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
        given = {"rejected": rejected, "drop_share": drop_share}
        raise_all(setting_problems(given), "label filter", "correct the settings")
        self.organs = read_label_table(label_table)
        try:
            contralateral_labels(self.organs)
        except InputError as error:
            raise InputError(f"{label_table}: {error}") from error
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
        """Refuse thresholds that no fit with this label table gives; `scripts.models.weights` asks before loading.

        Raises:
            InputError: the tables differ, there are no thresholds, or their values contradict each other.
        """
        if "table_id" in state and state["table_id"].tolist() != self.table_id.item():
            raise InputError(
                f"{path}: its thresholds were fitted with another label table than these {len(self.organs)} labels; "
                "set label_table to that of the fit, or fit with this one."
            )
        for key, own in self.state_dict().items():
            if key not in state or (state[key].shape, state[key].dtype) != (own.shape, own.dtype):
                return  # named by `scripts.models.weights`
        arrays = {name: state[name].detach().numpy() for name in (*_ARRAYS, "votes")}
        if problem := _contradiction(Thresholds(organs=self.organs, **arrays)):
            raise InputError(
                f"{path}: not the thresholds of a fit: {problem}; give the model.pt of a fit, or fit again."
            )

    def decide(self, features: np.ndarray, verdicts: str = "") -> pd.DataFrame:
        """Decide about the labels of one case.

        Args:
            features: (L, C) of `scripts.solf.measuring.case_features`.
            verdicts: of people, as `scripts.solf.verdicts.add_verdicts` gives them; they stand above the thresholds.

        Returns:
            See `scripts.solf.thresholds.judge`; `drop` for the other labels of a dropped case.
        """
        decisions = judge(feature_table(features, self.organs), self.thresholds)
        if verdicts:
            by_people = decisions["label"].map(verdicts_of_case(verdicts))
            decisions = decisions.assign(decision=overruled(decisions["decision"], by_people))
        return self.with_drops(decisions)

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

    def forward(
        self, label: torch.Tensor, features: torch.Tensor | None = None, verdicts: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Clean label maps.

        Args:
            label: (B, 1, X, Y, Z); a MetaTensor's affine gives mm; without one, voxels are taken as 1 mm.
            features: (B, L, C) of `scripts.solf.measuring.case_features`, if they are known already.
            verdicts: B texts of `scripts.solf.verdicts.add_verdicts`, if people reviewed the maps.

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
                array = self._new_values(self.decide(own, verdicts[n] if verdicts else ""))[array]
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
        pred = network(item["image"][None], item["features"][None], [item.get("verdicts", "")])[0]
    postprocessing({**item, "pred": pred})
    return pack_features(item["features"].numpy())


def _table_id(organs: Mapping[int, str]) -> int:
    """Return a checksum of a label table; part of the weights, so it must not depend on installed versions."""
    return zlib.crc32(json.dumps(sorted(organs.items())).encode())


def _contradiction(thresholds: Thresholds) -> str:
    """Describe why thresholds cannot be those of a fit; "" if they can."""
    low, high, quantiles, count = thresholds.low, thresholds.high, thresholds.quantiles, thresholds.voting.sum()
    if not 1 <= thresholds.votes <= count:
        return f"votes is {thresholds.votes} for {count} voting features"
    known, lower, upper = ~np.isnan(quantiles), quantiles[:-1], quantiles[1:]
    checks = {
        "subjects is negative": np.broadcast_to(thresholds.subjects[:, None] < 0, low.shape),
        "low or high is NaN": np.isnan(low) | np.isnan(high),
        "low is above high": (low > high) | (low == np.inf) | (high == -np.inf),
        "quantiles are infinite": np.isinf(quantiles).any(axis=0),
        "quantiles are NaN in part": known.any(axis=0) != known.all(axis=0),
        "quantiles are not ascending": (upper < lower * (1 - 1e-9 * np.sign(lower))).any(axis=0),  # but for rounding
    }
    for problem, wrong in checks.items():
        if wrong.any():
            organ, feature = np.argwhere(wrong)[0]
            return f"{problem} for {list(thresholds.organs.values())[organ]}, {FEATURES[feature]}"
    return ""
