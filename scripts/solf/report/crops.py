"""Rejected labels as small NIfTI files with colour tables, for mending by hand in 3D Slicer or ITK-SNAP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np

from scripts.common.files import atomic_path, write_text
from scripts.common.names import safe_name
from scripts.io.nifti import StoredVolume
from scripts.preview.colors import class_colors
from scripts.solf.fixing import crop_mark

MARGIN_MM = 20.0


class CropFolder:
    """Writes crops and, at first, the colour tables `labels.ctbl` (3D Slicer) and `labels.label.txt` (ITK-SNAP).

    Args:
        folder: the folder of all crops. Files in it are never replaced, because people correct them there.
        organs: label id to name.
    """

    def __init__(self, folder: Path, organs: Mapping[int, str]) -> None:
        self.folder, self.organs, self.written, self.kept = folder, organs, 0, 0
        colors = class_colors(organs)
        slicer = [f"{n} {organs[n].replace(' ', '_')} {' '.join(map(str, rgb))} 255" for n, rgb in colors.items()]
        names = {n: organ.replace('"', "'") for n, organ in organs.items()}
        snap = [f'{n} {" ".join(map(str, rgb))} 1 1 1 "{names[n]}"' for n, rgb in colors.items()]
        head = "# Color table file\n0 Background 0 0 0 0\n"
        write_text(folder / "labels.ctbl", head + "\n".join(slicer) + "\n")
        write_text(folder / "labels.label.txt", '0 0 0 0 0 0 0 "Background"\n' + "\n".join(snap) + "\n")

    def write(
        self, case: str, label: int, labels: np.ndarray, affine: np.ndarray, *, image: StoredVolume | None
    ) -> None:
        """Write `<case>/<label>_<organ>_labels.nii.gz` and, with an image, `_image.nii.gz` and `.itksnap`.

        Both keep their own voxels: the affine is that of the whole volume, moved to the crop's first voxel.

        Args:
            case: its name.
            label: id of the label to crop.
            labels: (I, J, K), all label ids of the case.
            affine: (4, 4), voxel indices to mm.
            image: the image of the case, on any grid.
        """
        start = self.folder / safe_name(case) / f"{label}_{safe_name(self.organs[label])}"
        first, stop = _box(np.argwhere(labels == label), affine, labels.shape)
        volumes = {"labels": _cropped(labels, affine, first, stop)}
        volumes["labels"].header["descrip"] = crop_mark(np.asarray(volumes["labels"].dataobj))
        if image is not None:
            corners = np.array(np.meshgrid(*zip(first, stop - 1, strict=True))).reshape(3, -1).T
            own = nib.affines.apply_affine(np.linalg.inv(image.affine) @ affine, corners)
            low, high = (end.clip(0, image.stored.shape) for end in (np.floor(own.min(0)), np.ceil(own.max(0)) + 1))
            if (high > low).all():
                cropped = _cropped(image.stored, image.affine, low.astype(int), high.astype(int))
                cropped.header.set_slope_inter(image.slope, image.inter)
                volumes["image"] = cropped
        for name, volume in volumes.items():
            self._save(volume, start.with_name(f"{start.name}_{name}.nii.gz"))
        if "image" in volumes:
            _write_workspace(start)

    def _save(self, volume: nib.Nifti1Image, path: Path) -> None:
        if path.exists():
            self.kept += 1
            return
        with atomic_path(path) as temporary:
            nib.save(volume, temporary)
        self.written += 1


def _box(voxels: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first voxel of a crop and the one past its last: the label with MARGIN_MM around it."""
    margin = np.ceil(MARGIN_MM / nib.affines.voxel_sizes(affine)).astype(int)
    return (voxels.min(0) - margin).clip(0), np.minimum(voxels.max(0) + 1 + margin, shape)


def _cropped(volume: np.ndarray, affine: np.ndarray, first: np.ndarray, stop: np.ndarray) -> nib.Nifti1Image:
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, first)
    box = tuple(slice(low, high) for low, high in zip(first, stop, strict=True))
    image = nib.Nifti1Image(np.ascontiguousarray(volume[box]), moved)
    image.header.set_xyzt_units("mm")
    image.set_sform(moved, code="scanner")
    image.set_qform(moved, code="scanner")
    return image


def _write_workspace(start: Path) -> None:
    """Write an ITK-SNAP workspace, which opens image and labels together."""
    root = ElementTree.Element("registry")
    layers = ElementTree.SubElement(root, "folder", key="Layers")
    for number, (name, role) in enumerate({"image": "MainRole", "labels": "SegmentationRole"}.items()):
        layer = ElementTree.SubElement(layers, "folder", key=f"Layer[{number:03d}]")
        path = start.with_name(f"{start.name}_{name}.nii.gz").resolve()
        for key, value in {"AbsolutePath": str(path), "Role": role, "Tags": ""}.items():
            ElementTree.SubElement(layer, "entry", key=key, value=value)
    write_text(start.with_name(f"{start.name}.itksnap"), ElementTree.tostring(root, encoding="unicode") + "\n")
