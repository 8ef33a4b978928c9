"""The label filter as a network: label map in, cleaned label map out; its weights are the thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from scripts.common.errors import InputError, raise_all
from scripts.common.label_maps import MAX_CLASS_ID
from scripts.common.organs import contralateral_labels
from scripts.common.settings import setting_problems
from scripts.solf.contacts import MAX_CONTACT_LABELS
from scripts.solf.covariates import MAX_COLUMNS, design_names
from scripts.solf.lookup import replace_labels
from scripts.solf.measuring import Transform, case_features, texts_of
from scripts.solf.norms import Norms
from scripts.solf.reference import RELATIVE, Reference
from scripts.solf.tables import IGNORE, feature_table, pack_features, read_label_table
from scripts.solf.thresholds import FEATURES, LEVELS, Thresholds, judge
from scripts.solf.verdicts import overruled, verdicts_of_case

if TYPE_CHECKING:
    import pandas as pd

Rejected = Literal["ignore", "background", "drop_case"]
REJECTED: tuple[Rejected, ...] = get_args(Rejected)
_ARRAYS = ("low", "high", "quantiles", "subjects", "voting", "present_percent")
_ABOUT_BYTES, _CODING_BYTES = 2048, 8192
_NORMS = ("coefficients", "norm_low", "norm_high")  # all NaN without norms
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
        self.register_buffer("table", _bytes(sorted(self.organs.items())))
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
        self.register_buffer("about", _bytes({}, length=_ABOUT_BYTES))
        coefficients = torch.full((MAX_COLUMNS, *bounds.shape), torch.nan, dtype=torch.float64)
        for name, buffer in zip(_NORMS, (coefficients, bounds * torch.nan, bounds * torch.nan), strict=True):
            self.register_buffer(name, buffer)
        self.register_buffer("coding", _bytes({}, length=_CODING_BYTES))

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that the buffers hold.

        Raises:
            InputError: it was not fitted.
        """
        if not self.voting.any():
            raise InputError("the label filter has no thresholds yet: fit it, or load the model.pt of a fit.")
        return _thresholds(dict(self.named_buffers()), self.organs)

    @thresholds.setter
    def thresholds(self, fitted: Thresholds) -> None:
        for name in _ARRAYS:
            array = getattr(fitted, name)
            getattr(self, name)[...] = torch.nan if array is None else torch.from_numpy(array)
        self.votes.fill_(fitted.votes)
        self.cases.fill_(fitted.cases)
        self.missing_percent.fill_(fitted.missing_percent)
        reference = torch.nan if fitted.reference is None else torch.from_numpy(np.stack(fitted.reference))
        self.reference[...] = reference
        self.about.copy_(_bytes(dict(fitted.about), length=_ABOUT_BYTES))
        norms = fitted.norms
        self.coding.copy_(_bytes(dict(norms.coding) if norms else {}, length=_CODING_BYTES))
        for name in _NORMS:
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
        if problem := _contradiction(state, self.organs):
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
    cleaned = network.clean(
        array, features, item.get("verdicts", ""), item.get("covariates", "")
    )  # without the copies of a forward pass
    pred = MetaTensor(torch.from_numpy(cleaned)[None], meta=image.meta)
    postprocessing({**item, "pred": pred})
    return pack_features(features, **texts_of(image.meta))


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


def _bytes(content: Any, *, length: int = 0) -> torch.Tensor:
    """Return plain values as JSON, uint8; part of the weights, so it must not depend on installed versions.

    Raises:
        InputError: it is longer than `length`.
    """
    text = json.dumps(content, sort_keys=True).encode()
    if length and len(text) > length:
        raise InputError(f"the settings of the fit take {len(text)} bytes: give shorter ones, at most {length}.")
    return torch.tensor(list(text.ljust(length)), dtype=torch.uint8)


def _thresholds(buffers: Mapping[str, torch.Tensor], organs: Mapping[int, str]) -> Thresholds:
    """Return the thresholds in buffers.

    Raises:
        ValueError: `about` or `coding` is not JSON of an object.
    """
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in buffers.items()}
    about, coding = (json.loads(arrays[name].tobytes()) for name in ("about", "coding"))
    if not (isinstance(about, dict) and isinstance(coding, dict)):
        raise ValueError("not an object")
    return Thresholds(
        organs=organs,
        **{name: arrays[name] for name in _ARRAYS},
        votes=int(arrays["votes"]),
        cases=int(arrays["cases"]),
        missing_percent=float(arrays["missing_percent"]),
        reference=None if np.isnan(arrays["reference"]).all() else Reference(*arrays["reference"]),
        norms=_norms(arrays, coding),
        about=about,
    )


def _norms(arrays: Mapping[str, np.ndarray], coding: Mapping[str, Any]) -> Norms | None:
    """Return the norms in buffers, None without covariates.

    Raises:
        ValueError: `coding` is none, or does not fit the coefficients.
    """
    coefficients, low, high = (arrays[name] for name in _NORMS)
    if not coding:
        return None
    try:
        count = len(design_names(coding))
        numbers = [code[key] for code in coding.values() if "mean" in code for key in ("mean", "sd", "low", "high")]
        is_known = np.isfinite(np.array(numbers, dtype=float)).all()
    except (KeyError, TypeError) as error:
        raise ValueError("coding is none") from error
    used = np.isfinite(coefficients).all(axis=(1, 2))
    if not (is_known and count <= MAX_COLUMNS and used[:count].all() and (low <= high).all()):
        raise ValueError("coding and coefficients differ")
    return Norms(coding, coefficients[:count], low, high)


def _contradiction(state: Mapping[str, torch.Tensor], organs: Mapping[int, str]) -> str:
    """Describe why weights cannot be those of a fit; "" if they can."""
    try:
        thresholds = _thresholds(state, organs)
    except (ValueError, RecursionError):
        return "about, or coding with its coefficients, is not that of a fit"
    low, high, quantiles, count = thresholds.low, thresholds.high, thresholds.quantiles, thresholds.voting.sum()
    if not 1 <= thresholds.votes <= count:
        return f"votes is {thresholds.votes} for {count} voting features"
    if not 0 < thresholds.missing_percent <= 100:
        return f"missing_percent is {thresholds.missing_percent}"
    for name in ("present_percent", "contact_percent"):
        shares = state[name].numpy()
        if not ((shares >= 0) & (shares <= 100) | np.isnan(shares)).all():
            return f"{name} is not from 0 to 100"
    medians, spreads = thresholds.reference or (np.zeros(1), np.ones(1))
    if np.isinf(medians).any() or not ((spreads > 0) & (spreads < np.inf) | np.isnan(spreads)).all():
        return "reference has medians that are infinite, or spreads that are not above 0"
    known, lower, upper = ~np.isnan(quantiles), quantiles[:-1], quantiles[1:]
    checks = {
        "subjects is negative": np.broadcast_to(thresholds.subjects[:, None] < 0, low.shape),
        "subjects is above the number of cases": np.broadcast_to(
            thresholds.subjects[:, None] > thresholds.cases, low.shape
        ),
        "low or high is NaN": np.isnan(low) | np.isnan(high),
        "low is above high": (low > high) | (low == np.inf) | (high == -np.inf),
        "quantiles are infinite": np.isinf(quantiles).any(axis=0),
        "quantiles are NaN in part": known.any(axis=0) != known.all(axis=0),
        "quantiles are not ascending": (upper < lower * (1 - 1e-9 * np.sign(lower))).any(axis=0),  # but for rounding
    }
    for problem, wrong in checks.items():
        if wrong.any():
            organ, feature = np.argwhere(wrong)[0]
            return f"{problem} for {list(organs.values())[organ]}, {FEATURES[feature]}"
    return ""
