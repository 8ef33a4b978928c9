"""Stations whose fat and water are exchanged, as the reconstruction of Dixon images does now and then."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from scripts.ukbb.archive import CHANNELS
from scripts.ukbb.stitching import Block, overlap, tissue

MAX_RESIDUAL = 0.15
"""Of fat + water against in-phase, and |water - fat| against opposed-phase, relative to in-phase, on average."""
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
    rims = [rim(block, pixel_mm) for block in blocks]
    residuals, misfits = zip(*(_arithmetic(block) for block in blocks), strict=True)
    notes = [f"station {number}: {misfit}" for number, misfit in zip(numbers, misfits, strict=True) if misfit]
    sound = [not misfit for misfit in misfits]
    links = [
        disagreement(*pair) if all(both) else None for pair, both in zip(pairwise(blocks), pairwise(sound), strict=True)
    ]
    swapped = _explained(links, rims)
    for start, stop in _chains(links):
        fat = [-r if s else r for r, s in zip(rims[start:stop], swapped[start:stop], strict=True) if np.isfinite(r)]
        if fat and np.mean(fat) < 0:
            listed = ", ".join(str(n) for n in sorted(numbers[start:stop]))
            notes.append(f"stations {listed}: water lies below the skin; fat and water may be exchanged in all of them")
    return SwapFindings(swapped, list(residuals), rims, notes)


def channel_signs(channels: np.ndarray, pixel_mm: Sequence[float]) -> list[str]:
    """Return the signs that the channels of a stitched volume are not in the order of `CHANNELS`; none if it fits.

    Args:
        channels: (4, X, Y, Z), X and Y across the body.
        pixel_mm: (2,) voxel size along X and Y.
    """
    box = tuple(slice(0, n) for n in channels.shape[1:])
    block = Block(box, {name: channel.astype(np.float32) for name, channel in zip(CHANNELS, channels, strict=True)})
    exchanged_all = "water lies below the skin; fat and water may be exchanged" if rim(block, pixel_mm) < 0 else ""
    return list(filter(None, [_arithmetic(block)[1] or exchanged_all]))


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


def _error(fat: np.ndarray, water: np.ndarray, together: np.ndarray, opposed: np.ndarray) -> float:
    errors = (np.abs(fat + water - together), np.abs(np.abs(water - fat) - opposed))
    return max(float(error.mean()) for error in errors) / max(float(together.mean()), 1e-6)


def _fits(fat: np.ndarray, water: np.ndarray, together: np.ndarray, opposed: np.ndarray) -> bool:
    """Return whether images obey the arithmetic; in-phase is never the darker one, even where fat is scarce."""
    return _error(fat, water, together, opposed) <= MAX_RESIDUAL and together.mean() > opposed.mean()


def _arithmetic(block: Block) -> tuple[float, str]:
    """Return how far the contrasts are from two-point Dixon, see `MAX_RESIDUAL`, and what they are instead, if not."""
    fat, water, together, opposed = _in_tissue(block)
    error = _error(fat, water, together, opposed)
    if _fits(fat, water, together, opposed):
        return error, ""
    others = {
        "in-phase and opposed-phase": (fat, water, opposed, together),
        "fat and in-phase": (together, water, fat, opposed),
        "water and in-phase": (fat, together, water, opposed),
    }
    found = next((f"{pair} are exchanged" for pair, images in others.items() if _fits(*images)), "")
    return error, found or "in-phase is not fat + water, or opposed-phase not their difference"


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
