"""Stations whose fat and water are exchanged, as the reconstruction of Dixon images does now and then."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from scripts.ukbb.stitching import Block, overlap, tissue

MAX_RESIDUAL = 0.25
"""Of fat + water against in-phase, and |water - fat| against opposed-phase, relative to in-phase."""
_SKIN_MM, _RIM_MM = 4.0, 14.0  # depth: skin and partial volumes, then subcutaneous fat
_SLICE_STEP = 4


class SwapFindings(NamedTuple):
    """What the contrasts of stations say, from the feet to the head.

    Attributes:
        swapped: whether fat and water of a station are exchanged.
        residuals: of the arithmetic of each station, see `MAX_RESIDUAL`.
        rims: fat share below the skin, from -1 (water) to 1 (fat); NaN if no rim is seen.
        notes: findings as text.
    """

    swapped: list[bool]
    residuals: list[float]
    rims: list[float]
    notes: list[str]


def find_swaps(blocks: Sequence[Block], numbers: Sequence[int], pixel_mm: Sequence[float]) -> SwapFindings:
    """Find stations whose fat and water are exchanged.

    Two neighbours disagree if the fat fraction of one is nearer to the water fraction of the other in the tissue of
    their overlap. Of the two ways to explain a chain of neighbours, the one with fewer exchanged stations is taken, and
    in a tie the one with more fat below the skin. The arithmetic fat + water = in-phase and |water - fat| =
    opposed-phase holds for exchanged stations too; where it does not hold, the contrasts are something else, and the
    station is reported, not called exchanged.

    Args:
        blocks: from the feet to the head.
        numbers: of the stations.
        pixel_mm: (2,) voxel size across the body.
    """
    residuals, rims = [residual(block) for block in blocks], [rim(block, pixel_mm) for block in blocks]
    notes = [
        _misfit(block, number) for block, number, r in zip(blocks, numbers, residuals, strict=True) if r > MAX_RESIDUAL
    ]
    sound = [r <= MAX_RESIDUAL for r in residuals]
    links = [
        disagreement(*pair) if all(both) else None for pair, both in zip(pairwise(blocks), pairwise(sound), strict=True)
    ]
    swapped = _explained(links, rims)
    for start, stop in _chains(links):
        fat = [-r if s else r for r, s in zip(rims[start:stop], swapped[start:stop], strict=True) if np.isfinite(r)]
        if fat and np.mean(fat) < 0:
            listed = ", ".join(str(n) for n in sorted(numbers[start:stop]))
            notes.append(f"stations {listed}: water lies below the skin; fat and water may be exchanged in all of them")
    return SwapFindings(swapped, residuals, rims, notes)


def residual(block: Block) -> float:
    """Return how far the contrasts are from what two-point Dixon gives, relative to the in-phase intensity."""
    fat, water, together, opposed = _in_tissue(block)
    scale = max(float(np.median(together)), 1e-6)
    errors = (np.abs(fat + water - together), np.abs(np.abs(water - fat) - opposed))
    return max(float(np.median(error)) for error in errors) / scale


def rim(block: Block, pixel_mm: Sequence[float]) -> float:
    """Return the median of (fat - water) / (fat + water) below the skin; NaN if the station shows no such rim."""
    together = block.values["in_phase"]
    found = []
    shown = tissue(together)
    for z in range(0, together.shape[2], _SLICE_STEP):
        body = binary_fill_holes(shown[..., z])
        depth_mm = distance_transform_edt(body, sampling=pixel_mm)
        edge = (depth_mm > _SKIN_MM) & (depth_mm <= _RIM_MM) & shown[..., z]
        fat, water = (block.values[name][..., z][edge] for name in ("fat", "water"))
        found.append((fat - water) / np.maximum(fat + water, 1e-6))
    values = np.concatenate(found)
    return float(np.median(values)) if values.size else float("nan")


def disagreement(lower: Block, upper: Block) -> bool | None:
    """Return whether the fat of one block is the water of the other; None if they share too little tissue."""
    both = overlap(lower, upper)
    if both is None:
        return None
    ours, theirs = (part["fat"] / np.maximum(part["fat"] + part["water"], 1e-6) for part in both)
    return bool(np.abs(ours - (1 - theirs)).mean() < np.abs(ours - theirs).mean())


def exchanged(block: Block) -> Block:
    """Return a block with fat and water exchanged."""
    return Block(block.box, {**block.values, "fat": block.values["water"], "water": block.values["fat"]})


def _in_tissue(block: Block) -> list[np.ndarray]:
    shown = tissue(np.maximum(block.values["in_phase"], block.values["opposed_phase"]))
    return [block.values[name][shown] for name in ("fat", "water", "in_phase", "opposed_phase")]


def _misfit(block: Block, number: int) -> str:
    """Describe a station whose contrasts do not fit the arithmetic."""
    fat, water, together, opposed = _in_tissue(block)
    names = {"in-phase and opposed-phase are": (fat, water, opposed, together)}
    names |= {
        "fat and in-phase are": (together, water, fat, opposed),
        "water and in-phase are": (fat, together, water, opposed),
    }
    for pair, (f, w, i, o) in names.items():
        errors = (np.abs(f + w - i), np.abs(np.abs(w - f) - o))
        if max(float(np.median(error)) for error in errors) <= MAX_RESIDUAL * max(float(np.median(i)), 1e-6):
            return f"station {number}: {pair} exchanged"
    return f"station {number}: in-phase is not fat + water, or opposed-phase not their difference"


def _chains(links: Sequence[bool | None]) -> list[tuple[int, int]]:
    """Return first and end of each run of stations that are compared with each other."""
    cuts = [0, *(index + 1 for index, link in enumerate(links) if link is None), len(links) + 1]
    return list(pairwise(cuts))


def _explained(links: Sequence[bool | None], rims: Sequence[float]) -> list[bool]:
    """Return which stations are exchanged, so that neighbours agree; see `find_swaps`."""
    swapped = [False] * (len(links) + 1)
    for start, stop in _chains(links):
        flips = np.cumsum([0, *(bool(link) for link in links[start : stop - 1])]) % 2 == 1
        ways = [flips, ~flips]
        fat = np.nan_to_num(np.array(rims[start:stop]))
        best = min(ways, key=lambda way: (way.sum(), -np.where(way, -fat, fat).sum()))
        swapped[start:stop] = best.tolist()
    return swapped
