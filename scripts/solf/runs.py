"""Measure every label of a volume in one pass over its runs of equal voxels.

A run is a stretch of one label along the last axis, so the work grows with the surface of the labels and not with
their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.common.jit import compiled
from scripts.solf.contacts import MAX_CONTACT_LABELS
from scripts.solf.marching_cubes import reordered

_SYMMETRIC = np.array([[4, 5, 6], [5, 7, 8], [6, 8, 9]])  # where `sums` holds xx to zz
_END = np.int32(2**31 - 1)  # after the last change of a row


@dataclass(frozen=True)
class LabelCounts:
    """The counts of one pass; they are integers, so they do not depend on the order of the voxels.

    Attributes:
        labels: (N,), those present except 0, ascending.
        voxels: (N,).
        first: (N, 3), sums of the voxels' indices.
        second: (N, 3, 3), sums of their products.
        boxes: (N, 3, 2), first index and one past the last, by axis.
        components: (N,), number of 26-connected components.
        cells: (N, 256), marching-cubes cells by configuration, the volume padded with background.
        touching: (N, N), whether two labels meet by face, edge or corner; (0, 0) for more than `MAX_CONTACT_LABELS`.
    """

    labels: np.ndarray
    voxels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    boxes: np.ndarray
    components: np.ndarray
    cells: np.ndarray
    touching: np.ndarray


def count_labels(volume: np.ndarray) -> LabelCounts:
    """Count voxels, moments, components and marching-cubes cells of every label but 0.

    Args:
        volume: labels, uint8 or uint16; copied only if it has gaps or reversed axes in memory.

    Shape:
        volume: (X, Y, Z).
    """
    order = np.argsort([-abs(stride) for stride in volume.strides], kind="stable")
    straight = np.ascontiguousarray(volume.transpose(order)).view()
    straight.flags.writeable = False  # so that numba compiles one version, for read-only arrays
    present, capacity = _survey(straight)
    labels = np.flatnonzero(present[1:]) + 1
    index_of = np.zeros(len(present), dtype=np.int32)
    index_of[labels] = np.arange(1, len(labels) + 1)
    sums = np.zeros((len(labels) + 1, 10), dtype=np.int64)
    boxes = np.zeros((len(labels) + 1, 3, 2), dtype=np.int64)
    boxes[:, :, 0] = np.iinfo(np.int64).max
    components = np.zeros(len(labels) + 1, dtype=np.int64)
    cells = np.zeros((len(labels) + 1, 256), dtype=np.int64)
    contacts = np.zeros((len(cells), len(cells)) if len(labels) <= MAX_CONTACT_LABELS else (0, 0), dtype=np.bool_)
    _scan(straight, index_of, capacity, sums, boxes, components, cells, contacts)
    place = np.argsort(order)
    second = sums[1:, _SYMMETRIC[np.ix_(place, place)]]
    cells = cells[1:, reordered(place)]
    touching = contacts[1:, 1:] | contacts[1:, 1:].T
    found = labels, sums[1:, 0], sums[1:, 1 + place], second, boxes[1:, place], components[1:], cells, touching
    return LabelCounts(*found)


@compiled
def _survey(volume):
    """Mark the labels that occur, and find the largest number of changes of label in a slice."""
    present = np.zeros(np.iinfo(volume.dtype).max + 1, dtype=np.bool_)
    most = 0
    for x in range(volume.shape[0]):
        changes = volume.shape[1]  # a row that ends inside a label has one more change
        for y in range(volume.shape[1]):
            before = volume.dtype.type(0)
            for z in range(volume.shape[2]):
                if volume[x, y, z] != before:
                    before = volume[x, y, z]
                    present[before] = True
                    changes += 1
        most = max(most, changes)
    return present, most


@compiled
def _scan(volume, index_of, capacity, sums, boxes, components, cells, contacts):
    """Go through the slices and the gaps between them, with the changes of two slices in memory.

    `sums` are the sums of 1, x, y, z, xx, xy, xz, yy, yz and zz over the voxels of a label. A change is an entry of
    `starts` and `labels`: from this position on, the row has that label. The entries of row y of slice s are
    rows[s, y] to rows[s, y + 1].
    """
    nx, ny, _ = volume.shape
    starts = np.empty(2 * capacity, dtype=np.int32)
    labels = np.empty(2 * capacity, dtype=np.int32)
    parents = np.empty(2 * capacity, dtype=np.int32)
    rows = np.zeros((2, ny + 1), dtype=np.int32)
    cursors, corners = np.zeros((4, 2), dtype=np.int32), np.zeros(8, dtype=np.int32)
    for x in range(nx + 1):
        now, before = x % 2, 1 - x % 2
        rows[now, :] = now * capacity
        if x < nx:
            _encode(volume[x], index_of, starts, labels, rows[now])
            _add_moments(x, starts, labels, rows[now], sums, boxes)
            _add_components(starts, labels, rows[now], rows[before], parents, components)
        for y in range(ny + 1):
            _add_cells(y, starts, labels, rows[before], rows[now], cursors, corners, cells, contacts)


@compiled
def _encode(plane, index_of, starts, labels, rows):
    entry = rows[0]
    for y in range(plane.shape[0]):
        rows[y] = entry
        before = plane.dtype.type(0)
        for z in range(plane.shape[1]):
            if plane[y, z] != before:
                before = plane[y, z]
                starts[entry] = z
                labels[entry] = index_of[before]
                entry += 1
        if before != 0:
            starts[entry] = plane.shape[1]
            labels[entry] = 0
            entry += 1
    rows[-1] = entry


@compiled
def _add_moments(x, starts, labels, rows, sums, boxes):
    for y in range(len(rows) - 1):
        for entry in range(rows[y], rows[y + 1]):
            label = labels[entry]
            if label == 0:
                continue
            first, stop = np.int64(starts[entry]), np.int64(starts[entry + 1])
            n = stop - first
            z = (first + stop - 1) * n // 2
            zz = ((stop - 1) * stop * (2 * stop - 1) - (first - 1) * first * (2 * first - 1)) // 6
            for term, value in enumerate((n, n * x, n * y, z, n * x * x, n * x * y, x * z, n * y * y, y * z, zz)):
                sums[label, term] += value
            for axis, (low, high) in enumerate(((x, x + 1), (y, y + 1), (first, stop))):
                boxes[label, axis, 0] = min(boxes[label, axis, 0], low)
                boxes[label, axis, 1] = max(boxes[label, axis, 1], high)


@compiled
def _add_components(starts, labels, rows, rows_before, parents, components):
    """Count each run as a component, and subtract one for each pair that proves to be connected."""
    ny = len(rows) - 1
    for y in range(ny):
        for entry in range(rows[y], rows[y + 1]):
            parents[entry] = entry
            if labels[entry] > 0:
                components[labels[entry]] += 1
        if y > 0:
            _join(rows[y], rows[y + 1], rows[y - 1], rows[y], rows[0], starts, labels, parents, components)
        for other in range(max(y - 1, 0), min(y + 2, ny)):
            other_rows = rows_before[other], rows_before[other + 1]
            _join(rows[y], rows[y + 1], *other_rows, rows[0], starts, labels, parents, components)


@compiled
def _join(first, stop, other, other_stop, slice_first, starts, labels, parents, components):
    """Join the runs of a row with those of a neighbouring row that they touch.

    The root of a run is a run of the current slice, never one of the slice before, which can therefore be overwritten.
    """
    for entry in range(first, stop):
        if labels[entry] == 0:
            continue
        while other + 1 < other_stop and starts[other + 1] < starts[entry]:
            other += 1
        neighbour = other
        while neighbour < other_stop and starts[neighbour] <= starts[entry + 1]:
            if labels[neighbour] == labels[entry]:
                root, joined = _root(parents, entry), _root(parents, neighbour)
                if root != joined:
                    components[labels[entry]] -= 1
                if slice_first <= joined < root:
                    parents[root] = joined
                else:
                    parents[joined] = root
            neighbour += 1


@compiled
def _root(parents, entry):
    while parents[entry] != entry:
        parents[entry] = parents[parents[entry]]
        entry = parents[entry]
    return entry


@compiled
def _add_cells(y, starts, labels, rows_before, rows, cursors, corners, cells, contacts):
    """Count the cells between four rows, y - 1 and y of two slices; stretches without a change are counted at once."""
    for row in range(4):
        table, inner_y = (rows_before if row < 2 else rows), y - 1 + row % 2
        inside = 0 <= inner_y < len(rows) - 1
        cursors[row] = (table[inner_y], table[inner_y + 1]) if inside else (0, 0)
    corners[:] = 0
    last = 0
    while True:
        z = _END
        for row in range(4):
            if cursors[row, 0] < cursors[row, 1]:
                z = min(z, starts[cursors[row, 0]])
        if z == _END:
            return
        if z > last + 1:
            _tally(corners, z - last - 1, cells, contacts)
        for row in range(4):
            if cursors[row, 0] < cursors[row, 1] and starts[cursors[row, 0]] == z:
                corners[2 * row + 1] = labels[cursors[row, 0]]
                cursors[row, 0] += 1
        _tally(corners, 1, cells, contacts)
        for row in range(4):
            corners[2 * row] = corners[2 * row + 1]
        last = z


@compiled
def _tally(corners, times, cells, contacts):
    """Count a cell for each label among its corners, and mark the labels that meet in it.

    Bit n of the configuration is corner n.
    """
    seen = 0
    for corner in range(8):
        label = corners[corner]
        if label == 0 or seen >> corner & 1:
            continue
        if seen and len(contacts):
            for other in range(corner):
                contacts[label, corners[other]] = True
        configuration = np.int32(0)
        for other in range(8):
            configuration |= np.int32(corners[other] == label) << np.int32(other)
        cells[label, configuration] += times
        seen |= configuration
