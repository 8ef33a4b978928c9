"""The label filter as a network: label map in, cleaned label map out; its weights are the thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from scripts.common.errors import InputError, raise_all
from scripts.common.files import input_sha256
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.organs import contralateral_labels
from scripts.common.settings import setting_problems
from scripts.solf.contacts import MAX_CONTACT_LABELS
from scripts.solf.covariates import MAX_COLUMNS
from scripts.solf.lookup import replace_labels
from scripts.solf.measuring import Transform, case_features, texts_of
from scripts.solf.reference import RELATIVE
from scripts.solf.stored import ARRAYS, NORMS, contradiction, stored_thresholds, text_buffer
from scripts.solf.tables import IGNORE, feature_table, pack_features, read_label_table
from scripts.solf.thresholds import FEATURES, LEVELS, Thresholds, judge
from scripts.solf.verdicts import overruled, verdicts_of_case

if TYPE_CHECKING:
    import pandas as pd

Rejected = Literal["ignore", "background", "drop_case"]
REJECTED: tuple[Rejected, ...] = get_args(Rejected)
_ABOUT_BYTES, _CODING_BYTES = 2048, 8192
_NO_GRAPH = (
    "the label filter measures with NumPy, which no graph of TorchScript, torch.export or ONNX can hold; run it with "
    "Python, as inference.json does."
)


class LabelFilter(nn.Module):
    """Reject the labels of a map whose features lie outside thresholds.

    Its buffers are the thresholds, which `scripts.solf.training.FilterTrainer` fits, the label table, and how they were
    fitted; texts are JSON in UTF-8, padded with spaces.

    Args:
        label_table: JSON file of label id to name; "" for the 72 organs of `scripts.common.organs`.
        rejected: what replaces rejected labels: `ignore` (`ignore_id`, which a loss must leave out, see
            `scripts.training.losses.MaskedDiceCELoss`), `background` (0, the published way, which teaches a model that
            the organ is absent) or `drop_case` (`ignore_id`, and in all voxels of a case of which more than
            `drop_share` of the labels are rejected).
        drop_share: see `rejected`.
        ignore_id: value of ignored voxels; those of the input are not measured, and stay ignored.

    Shape:
        Input and output: (B, 1, X, Y, Z) of any dtype that holds the labels and `ignore_id`; whole numbers to 65535.

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

    def __init__(
        self,
        *,
        label_table: str | Path = "",
        rejected: Rejected = "ignore",
        drop_share: float = 0.3,
        ignore_id: int = IGNORE,
    ) -> None:
        super().__init__()
        given = {"rejected": rejected, "drop_share": drop_share, "ignore_id": ignore_id}
        raise_all(setting_problems(given), "label filter", "correct the settings")
        self.organs = read_label_table(label_table, ignore_id=ignore_id)
        try:
            contralateral_labels(self.organs)
        except InputError as error:
            raise InputError(f"{label_table}: {error}") from error
        self.rejected, self.drop_share, self.ignore_id = rejected, drop_share, ignore_id
        bounds = torch.full((len(self.organs), len(FEATURES)), torch.inf, dtype=torch.float64)
        quantiles = torch.full((len(LEVELS), *bounds.shape), torch.nan, dtype=torch.float64)
        self.register_buffer("table", text_buffer(sorted(self.organs.items())))
        self.register_buffer("low", -bounds)
        self.register_buffer("high", bounds)
        self.register_buffer("quantiles", quantiles)
        self.register_buffer("subjects", torch.zeros(len(self.organs), dtype=torch.int64))
        self.register_buffer("present_percent", torch.full((len(self.organs),), torch.nan, dtype=torch.float64))
        self.register_buffer("voting", torch.zeros(len(FEATURES), dtype=torch.bool))
        self.register_buffer("votes", torch.tensor(0))
        self.register_buffer("cases", torch.tensor(0))
        self.register_buffer("missing_percent", torch.tensor(95.0, dtype=torch.float64))
        reference = torch.full((2, len(self.organs), len(RELATIVE)), torch.nan, dtype=torch.float64)
        self.register_buffer("reference", reference)
        size = len(self.organs) if len(self.organs) <= MAX_CONTACT_LABELS else 0
        self.register_buffer("contact_percent", torch.full((size, size), torch.nan, dtype=torch.float64))
        self.register_buffer("about", text_buffer({}, length=_ABOUT_BYTES))
        coefficients = torch.full((MAX_COLUMNS, *bounds.shape), torch.nan, dtype=torch.float64)
        for name, buffer in zip(NORMS, (coefficients, bounds * torch.nan, bounds * torch.nan), strict=True):
            self.register_buffer(name, buffer)
        self.register_buffer("coding", text_buffer({}, length=_CODING_BYTES))

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that the buffers hold.

        Raises:
            InputError: it was not fitted.
        """
        if not self.voting.any():
            raise InputError("the label filter has no thresholds yet: fit it, or load the model.pt of a fit.")
        return stored_thresholds(dict(self.named_buffers()), self.organs)

    @thresholds.setter
    def thresholds(self, fitted: Thresholds) -> None:
        for name in ARRAYS:
            array = getattr(fitted, name)
            getattr(self, name)[...] = torch.nan if array is None else torch.from_numpy(array)
        self.votes.fill_(fitted.votes)
        self.cases.fill_(fitted.cases)
        self.missing_percent.fill_(fitted.missing_percent)
        reference = torch.nan if fitted.reference is None else torch.from_numpy(np.stack(fitted.reference))
        self.reference[...] = reference
        self.about.copy_(text_buffer(dict(fitted.about), length=_ABOUT_BYTES))
        norms = fitted.norms
        self.coding.copy_(text_buffer(dict(norms.coding) if norms else {}, length=_CODING_BYTES))
        for name in NORMS:
            getattr(self, name).fill_(torch.nan)
        if norms:
            self.coefficients[: len(norms.coefficients)] = torch.from_numpy(norms.coefficients)
            self.norm_low[...], self.norm_high[...] = torch.from_numpy(norms.low), torch.from_numpy(norms.high)

    def __prepare_scriptable__(self) -> LabelFilter:
        """Refuse `torch.jit.script`, which calls this.

        Raises:
            InputError: always.
        """
        raise InputError(_NO_GRAPH)

    def refuse_state(self, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
        """Refuse thresholds that no fit with this label table gives; `scripts.models.weights` asks before loading.

        Raises:
            InputError: the tables differ, there are no thresholds, or their values contradict each other.
        """
        if "table_id" in state:
            raise InputError(f"{path}: was fitted by a version before 0.4.0; fit again with this one.")
        if "table" in state and not torch.equal(state["table"], self.table):
            raise InputError(
                f"{path}: its thresholds were fitted with another label table than these {len(self.organs)} labels; "
                "set label_table to that of the fit, or fit with this one."
            )
        for key, own in self.state_dict().items():
            if key not in state or (state[key].shape, state[key].dtype) != (own.shape, own.dtype):
                return  # named by `scripts.models.weights`
        if problem := contradiction(state, self.organs):
            raise InputError(
                f"{path}: not the thresholds of a fit: {problem}; give the model.pt of a fit, or fit again."
            )

    def decide(self, features: np.ndarray, verdicts: str = "", covariates: str = "") -> pd.DataFrame:
        """Decide about the labels of one case.

        Args:
            features: (L, C) of `scripts.solf.measuring.case_features`.
            verdicts: of people, as `scripts.solf.verdicts.add_verdicts` gives them; they stand above the thresholds.
            covariates: of the person, as `scripts.solf.covariates.add_covariates` gives them.

        Returns:
            See `scripts.solf.thresholds.judge`; `drop` for the other labels of a dropped case.

        Raises:
            InputError: the filter was fitted with covariates, and there are none.
        """
        known = {"": json.loads(covariates)} if covariates else None
        decisions = judge(feature_table(features, self.organs), self.thresholds, known)
        if verdicts:
            by_people = decisions["label"].map(verdicts_of_case(verdicts))
            decisions = decisions.assign(decision=overruled(decisions["decision"], by_people))
        return self.with_drops(decisions)

    def with_drops(self, decisions: pd.DataFrame) -> pd.DataFrame:
        """Drop cases of which more than `drop_share` is rejected, if `rejected` is `drop_case`."""
        if self.rejected != "drop_case":
            return decisions
        cases = decisions["case"] if "case" in decisions else np.zeros(len(decisions))
        labels = decisions["decision"] != "missing"
        shares = (decisions["decision"] == "reject").where(labels).groupby(cases).transform("mean")
        drops = (shares > self.drop_share) & (decisions["decision"] == "keep")
        reasons = shares.map("{:.0%} of the case's labels are rejected".format)
        columns = {
            "decision": decisions["decision"].mask(drops, "drop"),
            "reason": decisions["reason"].mask(drops, reasons),
        }
        return decisions.assign(**columns)

    def forward(
        self,
        label: torch.Tensor,
        features: torch.Tensor | None = None,
        verdicts: Sequence[str] | None = None,
        covariates: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Clean label maps.

        Args:
            label: (B, 1, X, Y, Z); a MetaTensor's affine gives mm; without one, voxels are taken as 1 mm.
            features: (B, L, C) of `scripts.solf.measuring.case_features`, if they are known already.
            verdicts: B texts of `scripts.solf.verdicts.add_verdicts`, if people reviewed the maps.
            covariates: B texts of `scripts.solf.covariates.add_covariates`, if the filter was fitted with some.

        Returns:
            The cleaned maps, of the type of `label`.

        Raises:
            InputError: a voxel is not from 0 to 65535, `label` is uint8 and `ignore_id` above 255, or it is traced.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise InputError(_NO_GRAPH)
        if not label.dtype.is_floating_point and self.ignore_id > torch.iinfo(label.dtype).max:
            raise InputError(
                f"label map: {label.dtype} cannot hold the ignore_id {self.ignore_id}; give wider integers."
            )
        cleaned = torch.empty_like(label)
        affine = np.asarray(getattr(label, "affine", torch.eye(4)))
        affines = np.broadcast_to(affine, (len(label), 4, 4))  # a batch has one each, a single case one
        for n, volume in enumerate(label):
            array = _unsigned(volume[0].cpu().numpy(), self.ignore_id)
            if ((array != 0) & (array != self.ignore_id)).any():  # an empty map has no features
                known = features is not None
                options = {"ignore_id": self.ignore_id}
                own = features[n].cpu().numpy() if known else case_features(array, affines[n], self.organs, **options)
                array = self.clean(array, own, verdicts[n] if verdicts else "", covariates[n] if covariates else "")
            cleaned[n, 0] = torch.from_numpy(array).to(label.dtype)
        return cleaned

    def clean(self, label: np.ndarray, features: np.ndarray, verdicts: str = "", covariates: str = "") -> np.ndarray:
        """Clean one label map.

        Args:
            label: (X, Y, Z), uint8 or uint16, of which `ignore_id` must be a value; not changed.
            features: (L, C) of `scripts.solf.measuring.case_features`.
            verdicts: of reviewers about the case, see `decide`.
            covariates: of the person, see `decide`.
        """
        decisions = self.decide(features, verdicts, covariates)
        values = np.arange(np.iinfo(label.dtype).max + 1, dtype=label.dtype)
        rejected = decisions.loc[decisions["decision"] == "reject", "label"].to_numpy()
        values[rejected] = 0 if self.rejected == "background" else self.ignore_id
        if (decisions["decision"] == "drop").any():
            values[:] = self.ignore_id
        return replace_labels(label, values)


def clean_case(
    case: Mapping[str, str], *, transform: Transform, network: LabelFilter, postprocessing: Transform
) -> bytes:
    """Read, measure, clean and write the label map of a case, and return its packed features."""
    item = transform(case)
    image, features = item["image"], item["features"].numpy()
    array = image.as_tensor()[0].numpy()
    texts = item.get("verdicts", ""), item.get("covariates", "")
    cleaned = network.clean(array, features, *texts)  # without the copies of a forward pass
    pred = MetaTensor(torch.from_numpy(cleaned)[None], meta=image.meta)
    postprocessing({**item, "pred": pred})
    return pack_features(features, **texts_of(image.meta), sha256=input_sha256(Path(case["image"])))


def _unsigned(label: np.ndarray, ignore_id: int) -> np.ndarray:
    """Return a label map as uint8 or uint16, which can hold `ignore_id` too."""
    low, high = label.min(initial=0), label.max(initial=0)
    if not (low >= 0 and high <= MAX_CLASS_ID):
        raise InputError(f"label map holds values from {low} to {high}, labels are 0 to {MAX_CLASS_ID}; renumber it.")
    return label.astype(np.min_scalar_type(max(int(high), ignore_id)), copy=False)


def require_fit(path: str | Path) -> None:
    """Say how to fit where there are no thresholds.

    Raises:
        InputError: there is nothing at `path`.
    """
    if not Path(path).exists():
        raise InputError(
            f"{path}: no such file; no thresholds come with the bundle: fit them with train.json to label maps of the "
            "same kind, and set ckpt_path to the model.pt of the fit."
        )
