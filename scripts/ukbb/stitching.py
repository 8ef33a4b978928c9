"""Stitching stations to one volume: a linear fade over their overlaps, and intensities matched there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.io.memory import require_memory_for
from scripts.io.nifti import StoredVolume
from scripts.ukbb.archive import CHANNELS
from scripts.ukbb.stations import Station

SLICE_SPACING_MM = 3.0
MAX_FACTOR = 4.0
"""Stations whose intensities differ by more are not matched: the overlap shows something else."""
MIN_VOXELS = 100
"""Of tissue in an overlap, to compare stations there."""
_ON_GRID = 1e-3  # voxels; positions in DICOM are rounded
_TURNED = 1e-3  # difference of direction cosines
_TISSUE_SHARE = 0.2

Box = tuple[slice, slice, slice]


class Block(NamedTuple):
    """A station on the grid of the result: the voxels that it covers, and its intensities there by contrast."""

    box: Box
    values: dict[str, np.ndarray]


def result_grid(stations: Sequence[Station], slice_spacing_mm: float = SLICE_SPACING_MM) -> Grid:
    """Return the grid that covers all stations, with the pixels of the widest one.

    Args:
        stations: of one subject.
        slice_spacing_mm: between the slices of the result.

    Raises:
        InputError: stations are turned against each other, or the result does not fit into memory.
    """
    volumes = [volume for station in stations for volume in station.volumes.values()]
    widest = max(volumes, key=lambda volume: volume.stored.shape[0] * volume.stored.shape[1])
    axes, sizes_mm = _axes(widest)
    for volume in volumes:
        if np.abs(_axes(volume)[0] - axes).max() > _TURNED:
            raise InputError("stations are turned against each other; they cannot be stitched without resampling.")
    starts, stops = zip(*(_span_mm(volume, axes) for volume in volumes), strict=True)
    low, high = np.min(starts, axis=0), np.max(stops, axis=0)
    step = np.array([*sizes_mm[:2], slice_spacing_mm])
    anchor = np.array([*(axes.T @ widest.affine[:3, 3])[:2], low[2]])
    first, last = np.ceil((low - anchor) / step - _ON_GRID), np.floor((high - anchor) / step + _ON_GRID)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * step, axes @ (anchor + first * step)
    grid = Grid(tuple(int(n) for n in last - first + 1), affine)
    require_memory_for((*grid.shape, 2 * len(CHANNELS)), 4, name="the stitched volume")
    return grid


def place(station: Station, grid: Grid) -> Block:
    """Resample a station on the grid of the result, linearly along axes that do not fit, and exactly along others."""
    positions = {name: _positions(volume, grid) for name, volume in station.volumes.items()}
    box = []
    for axis in range(3):
        inside = np.ones(grid.shape[axis], dtype=bool)
        for name, own in positions.items():
            last = station.volumes[name].stored.shape[axis] - 1
            inside &= (own[axis] >= 0) & (own[axis] <= last)
        covered = np.flatnonzero(inside)
        if not covered.size:
            raise InputError(f"station {station.number}: its contrasts do not overlap ({station.unequal}).")
        box.append(slice(int(covered[0]), int(covered[-1]) + 1))
    values = {}
    for name, volume in station.volumes.items():
        values[name] = volume.stored
        for axis in range(3):
            values[name] = _along(values[name], axis, positions[name][axis][box[axis]])
    return Block(tuple(box), values)


def tissue(values: np.ndarray) -> np.ndarray:
    """Return which voxels are brighter than a fifth of the 99th percentile."""
    return values > _TISSUE_SHARE * np.percentile(values, 99)


def overlap(lower: Block, upper: Block) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Return the intensities of two blocks in the tissue that both show; None if that is too little."""
    box = _common(lower.box, upper.box)
    if any(part.stop <= part.start for part in box):
        return None
    parts = [{name: _cut(block, name, box) for name in CHANNELS} for block in (lower, upper)]
    shown = tissue(parts[0]["in_phase"]) & tissue(parts[1]["in_phase"])
    if shown.sum() < MIN_VOXELS:
        return None
    ours, theirs = ({name: values[shown] for name, values in part.items()} for part in parts)
    return ours, theirs


def match_factors(blocks: Sequence[Block]) -> tuple[list[float], list[int]]:
    """Return the factor of each station that makes its in-phase intensities those of its neighbours.

    It is the ratio of the medians of the tissue in the overlap, from the middle station outwards. All contrasts of a
    station share it, so that fat fractions stay. Stations without a usable overlap start anew with 1.

    Args:
        blocks: from the feet to the head.

    Returns:
        The factors, and the indices of stations that could not be matched with the next one.
    """
    ratios, unmatched = [], []
    for index, (lower, upper) in enumerate(pairwise(blocks)):
        both = overlap(lower, upper)
        ratio = np.median(both[0]["in_phase"]) / np.median(both[1]["in_phase"]) if both else 0.0
        if not 1 / MAX_FACTOR < ratio < MAX_FACTOR:
            unmatched.append(index)
        ratios.append(1.0 if index in unmatched else float(ratio))
    middle = len(blocks) // 2
    factors = np.cumprod([1.0, *ratios])
    return [float(factor / factors[middle]) for factor in factors], unmatched


def blend(blocks: Sequence[Block], factors: Sequence[float], grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Add stations up; in an overlap the weight of each falls linearly to 0 one slice behind its end.

    Args:
        blocks: from the feet to the head.
        factors: of their intensities.
        grid: of the result.

    Returns:
        The channels, (4, X, Y, Z) float32, 0 where no station lies, and which voxels have a station, (X, Y, Z).
    """
    total, sums = np.zeros(grid.shape, np.float32), np.zeros((len(CHANNELS), *grid.shape), np.float32)
    for index, (block, factor) in enumerate(zip(blocks, factors, strict=True)):
        start, stop = block.box[2].start, block.box[2].stop
        weight = np.ones(stop - start, np.float32)
        if index > 0:
            weight *= _fade(np.arange(stop - start), blocks[index - 1].box[2].stop - 1 - start)
        if index + 1 < len(blocks):
            weight *= _fade(np.arange(stop - start)[::-1], stop - 1 - blocks[index + 1].box[2].start)
        total[block.box] += weight
        for channel, name in zip(sums, CHANNELS, strict=True):
            channel[block.box] += weight * (block.values[name] * np.float32(factor))
    covered = total > 0
    sums /= np.where(covered, total, 1)
    return sums, covered


def gaps(covered: np.ndarray) -> list[tuple[int, int]]:
    """Return first and last slice of each gap between stations.

    Args:
        covered: which voxels have a station, (X, Y, Z).
    """
    empty = np.concatenate([[False], ~covered.any(axis=(0, 1)), [False]]).astype(int)
    edges = np.diff(empty)
    return [(int(a), int(b) - 1) for a, b in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True)]


def as_integers(channels: np.ndarray) -> np.ndarray:
    """Round intensities to int16, or to uint16 if they are too large for that; negative ones become 0."""
    dtype = np.int16 if channels.max(initial=0) < np.iinfo(np.int16).max else np.uint16
    integers = np.empty(channels.shape, dtype)
    for channel, into in zip(channels, integers, strict=True):  # one float copy at a time
        into[...] = np.clip(np.rint(channel), 0, np.iinfo(dtype).max)
    return integers


def mm_of(grid: Grid, slices: tuple[int, int]) -> list[float]:
    """Return the positions of two slices in mm towards the head."""
    return [round(float((grid.affine @ [0, 0, z, 1])[2]), 2) for z in slices]


def _axes(volume: StoredVolume) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of the voxel axes as columns, and the voxel size in mm."""
    sizes_mm = np.linalg.norm(volume.affine[:3, :3], axis=0)
    return volume.affine[:3, :3] / sizes_mm, sizes_mm


def _span_mm(volume: StoredVolume, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres of the first and the last voxel along each axis."""
    start = axes.T @ volume.affine[:3, 3]
    return start, start + _axes(volume)[1] * (np.array(volume.stored.shape) - 1)


def _positions(volume: StoredVolume, grid: Grid) -> list[np.ndarray]:
    """Return, for each axis, where the voxels of the grid lie in a volume, in its voxels."""
    steps_mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = grid.affine[:3, :3] / steps_mm
    start, sizes_mm = axes.T @ (grid.affine[:3, 3] - volume.affine[:3, 3]), _axes(volume)[1]
    found = [(start[n] + steps_mm[n] * np.arange(grid.shape[n])) / sizes_mm[n] for n in range(3)]
    return [np.where(np.abs(p - p.round()) < _ON_GRID, p.round(), p) for p in found]


def _along(values: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """Interpolate linearly along an axis; whole positions give the voxels themselves."""
    low = np.floor(positions).astype(int)
    below = np.take(values, low, axis=axis)
    if (low == positions).all():
        return below
    above = np.take(values, np.minimum(low + 1, values.shape[axis] - 1), axis=axis)
    share = np.reshape(positions - low, [-1 if n == axis else 1 for n in range(3)]).astype(np.float32)
    return below + share * (above - below)


def _common(box: Box, other: Box) -> Box:
    pairs = zip(box, other, strict=True)
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)


def _cut(block: Block, name: str, box: Box) -> np.ndarray:
    inner = zip(box, block.box, strict=True)
    return block.values[name][tuple(slice(a.start - b.start, a.stop - b.start) for a, b in inner)]


def _fade(depth: np.ndarray, length: int) -> np.ndarray:
    """Return the weight of slices at an end that overlaps with a neighbour: 0 one slice behind the end.

    Args:
        depth: of the slices, 0 at the end.
        length: slices in the overlap after the first; negative if there is none.
    """
    return np.clip((depth + 1) / (length + 2), 0, 1).astype(np.float32) if length >= 0 else np.ones(1, np.float32)
