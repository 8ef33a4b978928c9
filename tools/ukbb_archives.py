"""Archives in the layout of UK Biobank's field 20201, cut from a phantom of a body.

`python -m tools.ukbb_archives OUT [--subjects N] [--full]`
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from tools.phantom_parts import column

PARTS = ("F", "W", "in", "opp")
_CSV_HEAD = ("filename", "patientid", "studyid", "seriesid", "series", "date")
Intensities = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Takes points (3, ...) in mm towards right, front and head; returns fat and water there."""


class Layout(NamedTuple):
    """A station: where it lies, and how it is sampled.

    Attributes:
        prefix: of the names of its series.
        shape: columns, rows, slices.
        top_mm: position of its highest slice.
        step_mm: distance of its slices.
        pixel_mm: of rows and columns.
    """

    prefix: str
    shape: tuple[int, int, int]
    top_mm: float
    step_mm: float
    pixel_mm: float = 2.232


def lay_out(
    pixels: int, rows: Sequence[int], slices: Sequence[int], steps_mm: Sequence[float], pixel_mm: float
) -> tuple:
    """Lay six stations out downwards from 0, so that neighbours share 36 to 40 mm, a whole number of 3 mm steps."""
    stations, top = [], 0.0
    holds = ("noBH", "BH_17s", "BH_17s", "BH_17s", "noBH", "noBH")
    for hold, n_rows, n, step in zip(holds, rows, slices, steps_mm, strict=True):
        stations.append(Layout(f"Dixon_{hold}", (pixels, n_rows, n), top, step, pixel_mm))
        top = 3.0 * round((top - (n - 1) * step + 36) / 3)
    return tuple(stations)


FULL = lay_out(224, (168, 174, 174, 174, 162, 156), (64, 44, 44, 44, 72, 64), (3, 4.5, 4.5, 4.5, 3.5, 4), 2.232)
SMALL = lay_out(44, (34, 36, 36, 36, 32, 30), (11,) * 6, (18,) * 6, 11.0)
"""A fifth of the pixels, slices 18 mm apart, every station on one grid."""


def body(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fat and water of a body from neck to knees, whole numbers that differ from place to place.

    Neck and trunk are one ellipse per slice, the thighs two; below the skin is fat, inside muscle with a liver on the
    right, a heart on the left, lungs and a spine.

    Args:
        points_mm: (3, ...) towards right, front, head; the head end of the scan is at 0.
    """
    right, front, up = points_mm
    wide = np.interp(up, [-1110, -700, -600, -450, -200, -140, 0], [85, 100, 190, 165, 185, 160, 75])
    deep = np.interp(up, [-1110, -700, -600, -450, -200, -140, 0], [85, 95, 120, 110, 120, 90, 75])
    across = np.where(up < -680, np.abs(right) - 105, right)
    radius = np.sqrt((across / wide) ** 2 + (front / deep) ** 2)
    inside, rim = radius < 1, radius > 1 - 26 / np.minimum(wide, deep)
    texture = np.rint(20 * np.sin(right / 23) * np.sin(front / 19) * np.cos(up / 31))
    water, fat = np.where(inside, 300 + texture, 0), np.where(inside, 40 + texture / 2, 0)

    def paint(where: np.ndarray, fat_value: float, water_value: float) -> None:
        fat[where], water[where] = fat_value + np.rint(texture[where] / 4), water_value + texture[where]

    def ball(centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
        return inside & ((((points_mm - column(centre)) / column(radii)) ** 2).sum(axis=0) < 1)

    for side in (-1, 1):
        paint(ball((80 * side, 0, -240), (52, 75, 105)), 10, 25)
        paint(ball((105 * side, 0, -850), (22, 22, 400)), 200, 60)
    paint(ball((-25, 25, -260), (52, 45, 50)), 20, 420)
    paint(ball((70, 10, -370), (90, 70, 60)), 60, 500)
    paint(ball((-95, -35, -375), (30, 40, 45)), 30, 560)
    paint(inside & (up > -640) & (right**2 + (front + 70) ** 2 < 22**2), 220, 120)
    paint(inside & rim, 600, 60)
    return np.rint(fat), np.rint(water)


def station_points(station: Layout) -> np.ndarray:
    """Return the points of a station's voxels as DICOM stores them, (3, slices, rows, columns), the top slice first."""
    columns, rows, slices = station.shape
    left = (np.arange(columns) - (columns - 1) / 2) * station.pixel_mm
    back = (np.arange(rows) - (rows - 1) / 2) * station.pixel_mm
    up = station.top_mm - np.arange(slices) * station.step_mm
    z, y, x = np.meshgrid(up, back, left, indexing="ij")
    return np.stack([-x, -y, z])


def contrasts(fat: np.ndarray, water: np.ndarray) -> dict[str, np.ndarray]:
    """Return the images of two-point Dixon by the last part of their series' names."""
    return {"F": fat, "W": water, "in": fat + water, "opp": np.abs(water - fat)}


def station_files(
    station: Layout,
    number: int,
    *,
    subject: str,
    intensities: Intensities = body,
    time: float = 100000.0,
    **elements: object,
) -> dict[str, list[pydicom.Dataset]]:
    """Return the slices of a station by contrast.

    Args:
        station: its layout.
        number: makes its series' UIDs distinct.
        subject: number of the subject.
        intensities: of the body.
        time: SeriesTime.
        elements: DICOM elements that all slices get.
    """
    images = contrasts(*intensities(station_points(station)))
    return {part: _series(station, images[part], part, number, subject, time, elements) for part in PARTS}


def _series(
    station: Layout,
    voxels: np.ndarray,
    part: str,
    number: int,
    subject: str,
    time: float,
    elements: Mapping[str, object],
) -> list[pydicom.Dataset]:
    columns, rows, slices = station.shape
    uid = f"1.2.826.{subject}.{number}.{PARTS.index(part) + 1}.{int(time)}"
    files = []
    for index in range(slices):
        item = pydicom.Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = MRImageStorage
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index + 1}"
        item.SeriesInstanceUID, item.FrameOfReferenceUID = uid, f"1.2.826.{subject}"
        item.PatientID, item.Modality, item.SeriesDescription = subject, "MR", f"{station.prefix}_{part}"
        item.SeriesDate, item.SeriesTime, item.SeriesNumber = "20140502", f"{time:013.6f}", number * 4
        item.InstanceNumber, item.SliceThickness = index + 1, 9.9  # wrong on purpose: positions tell the spacing
        item.ImageOrientationPatient, item.PixelSpacing = [1, 0, 0, 0, 1, 0], [station.pixel_mm] * 2
        corner = [-(n - 1) / 2 * station.pixel_mm for n in (columns, rows)]
        item.ImagePositionPatient = [*(f"{mm:.6g}" for mm in corner), f"{station.top_mm - index * station.step_mm:.6g}"]
        item.Rows, item.Columns, item.SamplesPerPixel, item.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 12, 11, 0
        item.PixelData = voxels[index].astype("<u2").tobytes()
        item.update({pydicom.datadict.tag_for_keyword(k): _element(k, v) for k, v in elements.items()})
        files.append(item)
    return files


def _element(keyword: str, value: object) -> pydicom.DataElement:
    tag = pydicom.datadict.tag_for_keyword(keyword)
    return pydicom.DataElement(tag, pydicom.datadict.dictionary_VR(tag), value)


def write_archive(path: Path, series: Sequence[Sequence[pydicom.Dataset]], *, manifest: str = "manifest.cvs") -> Path:
    """Write series as one archive, flat, with a manifest whose head lacks a column: dates hold a comma.

    Args:
        path: of the zip file.
        series: slices of each series.
        manifest: name of the manifest; "" for none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
    rows.writerow(_CSV_HEAD)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for item in (item for slices in series for item in slices):
            name = f"{item.SOPInstanceUID}.dcm"
            content = io.BytesIO()
            item.save_as(content, enforce_file_format=True)
            archive.writestr(name, content.getvalue())
            own = [name, item.PatientID, "1", str(item.SeriesNumber), str(item.get("SeriesDescription", ""))]
            rows.writerow([*own, "May 2", " 2014"])
        if manifest:
            archive.writestr(manifest, table.getvalue())
    return path


def whole_body(
    subject: str, layout: Sequence[Layout] = SMALL, *, intensities: Intensities = body
) -> list[dict[str, list[pydicom.Dataset]]]:
    """Return the slices of all stations from the neck, each by contrast, a minute apart."""
    return [
        station_files(station, n, subject=subject, intensities=intensities, time=100000.0 + 100 * n)
        for n, station in enumerate(layout, start=1)
    ]


def flat(stations: Sequence[Mapping[str, Sequence[pydicom.Dataset]]]) -> list[Sequence[pydicom.Dataset]]:
    """Return the series of stations as one list."""
    return [slices for station in stations for slices in station.values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Write archives of subjects of different size."""
    parser = argparse.ArgumentParser(prog="python -m tools.ukbb_archives", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the archives")
    parser.add_argument("--subjects", type=int, default=2, help="number of archives (default: 2)")
    parser.add_argument("--full", action="store_true", help="the grids of UK Biobank instead of small ones")
    args = parser.parse_args(argv)
    for index in range(args.subjects):
        subject, size = str(1000001 + index), 1 + 0.08 * np.sin(index)
        layout = FULL if args.full else SMALL
        stations = whole_body(subject, layout, intensities=lambda points, size=size: body(points / size))
        write_archive(args.out / f"{subject}_20201_2_0.zip", flat(stations))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
