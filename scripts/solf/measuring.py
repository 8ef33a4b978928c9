"""The features of one label map as an array, a row per label of the label table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scripts.common.errors import InputError
from scripts.solf.anatomy import anatomy_columns
from scripts.solf.contacts import pairs_as_text
from scripts.solf.features import shapes_and_contacts
from scripts.solf.lookup import replace_labels
from scripts.solf.tables import COLUMNS, pack_features

Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def case_features(
    label: np.ndarray, affine: np.ndarray, organs: Mapping[int, str], *, ignore_id: int | None = None
) -> np.ndarray:
    """Measure the features of one label map; see `features_and_contacts`."""
    return features_and_contacts(label, affine, organs, ignore_id=ignore_id)[0]


def features_and_contacts(
    label: np.ndarray, affine: np.ndarray, organs: Mapping[int, str], *, ignore_id: int | None = None
) -> tuple[np.ndarray, str]:
    """Measure one label map.

    Args:
        label: label ids, (I, J, K).
        affine: voxel indices to mm, (4, 4).
        organs: label id to name.
        ignore_id: value of ignored voxels, which are measured as background; None for none.

    Returns:
        (L, C) float64: a row per organ, NaN for those that the map lacks; a column per name of `COLUMNS`.
        Then which labels touch, as `scripts.solf.contacts.pairs_as_text`.

    Raises:
        InputError: the map holds no labels or others than `organs`, or `shape_columns` refuses it.
    """
    if ignore_id is not None and label.max(initial=0) >= ignore_id and (label == ignore_id).any():
        kept = np.arange(np.iinfo(label.dtype).max + 1, dtype=label.dtype)
        kept[ignore_id] = 0
        label = replace_labels(label, kept)
    columns, touching = shapes_and_contacts(label, affine)
    columns |= anatomy_columns(columns, organs)
    present = columns["label"]
    unknown = sorted(set(present.tolist()) - set(organs))
    if unknown:
        named = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        count = "1 label" if len(unknown) == 1 else f"{len(unknown)} labels"
        hint = "; or is it an image?" if len(unknown) > len(organs) else "."
        raise InputError(
            f"holds {count} that the label table lacks: {named}; set label_table, or label_names if the organs have "
            f"other ids, or ignore_id{hint}"
        )
    if not len(present):
        raise InputError("holds no labels; leave it out.")
    features = np.full((len(organs), len(COLUMNS)), np.nan)
    features[np.searchsorted(list(organs), present)] = np.stack([columns[name] for name in COLUMNS], axis=1)
    return features, pairs_as_text(present, touching)


def measure_case(case: Mapping[str, str], *, transform: Transform) -> bytes:
    """Read and measure the label map of a case, and return its packed features."""
    item = transform(case)
    return pack_features(item["features"].numpy(), **texts_of(item["image"].meta))


def texts_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what the metadata of a label map tell besides its features, for `scripts.solf.tables.pack`."""
    return {name: meta.get(name, "") for name in ("sources", "contacts", "fixed")}
