"""One archive of field 20201 to one volume with four channels."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError
from scripts.common.files import atomic_path, write_json
from scripts.common.grids import Grid
from scripts.common.names import printable
from scripts.data.plausibility import orientation_signs
from scripts.ukbb.archive import CHANNELS, read_series
from scripts.ukbb.bias import bias_field
from scripts.ukbb.montage import write_montage
from scripts.ukbb.stations import Station, find_stations, missing_stations
from scripts.ukbb.stitching import (
    SLICE_SPACING_MM,
    Block,
    as_integers,
    blend,
    gaps,
    match_factors,
    mm_of,
    place,
    result_grid,
)
from scripts.ukbb.swaps import SwapFindings, exchanged, find_swaps

ARCHIVE_NAME = re.compile(r"(\d+)_20201_(\d+)_(\d+)\.zip", re.ASCII)
GZIP_LEVEL = 1


class Options(NamedTuple):
    """How archives are prepared.

    Attributes:
        fix_swaps: exchange fat and water of stations where they are found exchanged.
        match: match intensities between stations.
        n4: correct the bias field.
        slice_spacing_mm: between slices of the result.
    """

    fix_swaps: bool = False
    match: bool = True
    n4: bool = False
    slice_spacing_mm: float = SLICE_SPACING_MM


class Stitched(NamedTuple):
    """The result of one archive.

    Attributes:
        channels: (4, X, Y, Z) integers, in the order of `CHANNELS`.
        grid: of the voxels.
        gaps: first and last slice of each gap.
        seams: slices in the middle of overlaps.
        facts: what stands in the JSON file.
    """

    channels: np.ndarray
    grid: Grid
    gaps: list[tuple[int, int]]
    seams: list[int]
    facts: dict[str, Any]


def case_name(path: Path) -> str:
    """Return the name of an archive's case, with instance and array: a subject may have been scanned twice.

    >>> case_name(Path("1234567_20201_2_0.zip"))
    '1234567_2_0'
    """
    match = ARCHIVE_NAME.fullmatch(path.name)
    if match is None:
        raise InputError(f"{printable(path)}: not named like 1234567_20201_2_0.zip; rename it.")
    return "_".join(match.groups())


def prepare_subject(case: Mapping[str, str], *, out_dir: Path, options: Options) -> bytes:
    """Write the volume, the JSON file and the picture of an archive.

    The JSON file is written last, so that the others are complete if it exists.

    Args:
        case: `{"case": name, "image": path of the archive}`.
        out_dir: folder of the results.
        options: how.

    Returns:
        What stands in the JSON file.

    Raises:
        InputError: the archive cannot be used; see `read_series` and `find_stations`.
    """
    name, path = case["case"], Path(case["image"])
    try:
        result = stitch(path, options)
    except InputError as error:
        message = str(error)
        raise error if str(path) in message else InputError(f"{printable(path)}: {message}") from error
    volume, picture, facts = result_paths(out_dir, name)
    spacing_mm = np.linalg.norm(result.grid.affine[:3, :3], axis=0)
    _write_volume(result.channels, result.grid.affine, volume)
    title = f"{name}   {_headline(result.facts)}"
    write_montage(result.channels, spacing_mm, picture, title=title, gaps=result.gaps, seams=result.seams)
    write_json(facts, {"case": name, **result.facts})
    return json.dumps({"case": name, **result.facts}).encode()


def result_paths(out_dir: Path, name: str) -> tuple[Path, Path, Path]:
    """Return the paths of a case's volume, picture and JSON file."""
    return out_dir / "images" / f"{name}.nii.gz", out_dir / "qc" / f"{name}.png", out_dir / "images" / f"{name}.json"


def stitch(path: Path, options: Options) -> Stitched:
    """Read an archive and stitch its stations; see `prepare_subject`."""
    series, others = read_series(path)
    stations, notes = find_stations(series, path)
    series.clear()
    grid = result_grid(stations, options.slice_spacing_mm)
    blocks = [place(station, grid) for station in stations]
    numbers = [station.number for station in stations]
    swaps = find_swaps(blocks, numbers, _spacing_mm(grid)[:2])
    if options.fix_swaps:
        blocks = [exchanged(b) if swapped else b for b, swapped in zip(blocks, swaps.swapped, strict=True)]
    factors, unmatched = match_factors(blocks) if options.match else ([1.0] * len(blocks), [])
    notes += [f"intensities of stations {numbers[n + 1]} and {numbers[n]} could not be matched" for n in unmatched]
    channels, covered = blend(blocks, factors, grid)
    if options.n4:
        channels /= np.where(covered, bias_field(channels[CHANNELS.index("in_phase")], _spacing_mm(grid)), 1)
    found = gaps(covered)
    notes += [f"orientation: {sign}" for sign in orientation_signs(channels[CHANNELS.index("in_phase")], grid.affine)]
    facts = {
        "channels": list(CHANNELS),
        "shape": list(grid.shape),
        "spacing_mm": [round(mm, 4) for mm in _spacing_mm(grid)],
        "missing_stations": missing_stations(stations),
        "gaps": [{"first_slice": a, "last_slice": b, "mm": mm_of(grid, (a, b))} for a, b in found],
        "swapped_stations": sorted(n for n, swapped in zip(numbers, swaps.swapped, strict=True) if swapped),
        "swaps_fixed": options.fix_swaps,
        "n4": options.n4,
        "stations": _station_facts(stations, factors, swaps),
        "other_series": others,
        "notes": [*notes, *swaps.notes],
    }
    return Stitched(as_integers(channels), grid, found, _seams(blocks), facts)


def _station_facts(stations: list[Station], factors: list[float], swaps: SwapFindings) -> list[dict[str, Any]]:
    """Describe stations from the neck to the knees."""
    rows = []
    for station, factor, swapped, residual, rim in zip(
        stations, factors, swaps.swapped, swaps.residuals, swaps.rims, strict=True
    ):
        volume = station.volumes["in_phase"]
        rows.append(
            {
                "station": station.number,
                "series": station.name,
                "shape": list(volume.stored.shape),
                "spacing_mm": [round(mm, 4) for mm in _spacing_mm(volume.grid)],
                "ends_mm": [round(mm, 2) for mm in station.ends_mm],
                "repeats": station.repeats,
                "unequal": station.unequal,
                "factor": round(factor, 4),
                "swapped": swapped,
                "residual": round(residual, 4),
                "rim": None if np.isnan(rim) else round(rim, 3),
            }
        )
    return rows[::-1]


def _headline(facts: Mapping[str, Any]) -> str:
    missing = ", ".join(map(str, facts["missing_stations"])) or "none"
    swapped = ", ".join(map(str, facts["swapped_stations"])) or "none"
    fixed = " (exchanged back)" if facts["swaps_fixed"] and facts["swapped_stations"] else ""
    return f"missing stations: {missing}   fat and water exchanged: {swapped}{fixed}   notes: {len(facts['notes'])}"


def _spacing_mm(grid: Grid) -> list[float]:
    return [float(mm) for mm in np.linalg.norm(grid.affine[:3, :3], axis=0)]


def _seams(blocks: list[Block]) -> list[int]:
    """Return the slice in the middle of each overlap."""
    pairs = [(upper.box[2].start, lower.box[2].stop - 1) for lower, upper in pairwise(blocks)]
    return [(start + end) // 2 for start, end in pairs if start <= end]


def _write_volume(channels: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write channels as (X, Y, Z, 4); equal channels give equal bytes."""
    image = nib.Nifti1Image(np.moveaxis(channels, 0, -1), affine)
    image.header.set_xyzt_units("mm")
    image.header.set_sform(affine, code="scanner")
    image.header.set_qform(affine, code="scanner")
    image.header["descrip"] = ",".join(CHANNELS)
    packing = {"filename": "", "mode": "wb", "compresslevel": GZIP_LEVEL, "mtime": 0}
    with atomic_path(path) as temporary, temporary.open("wb") as file, gzip.GzipFile(fileobj=file, **packing) as packed:
        image.to_stream(packed)
