"""Finding the label maps of an input: files, trees of folders, BIDS derivatives, folders of masks, DICOM SEG."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.names import is_nifti, printable, stem
from scripts.common.organs import IDS_OF_NAMES
from scripts.data.inputs import Case, list_cases
from scripts.io.dicom_seg import is_dicom_seg
from scripts.solf.tables import read_label_table

_BIDS_FOLDER = re.compile(r"sub-[a-zA-Z0-9]+")
_BIDS_PERSON = re.compile(r"_?(sub|ses|run|acq)-[a-zA-Z0-9]+")
_BIDS_SUFFIX = "_dseg"
_MASKS_FOLDER = "segmentations"
_MIN_ORGANS = 2
_LISTED_NAMES = 5
_OWN_FILE = "journal.sqlite"
logger = logging.getLogger(__name__)


def list_label_maps(
    source: str | Path,
    *,
    output_dir: str | Path | None = None,
    label_table: str | Path = "",
    split: str | Sequence[str] = ("test", "training"),
) -> list[Case]:
    """List label maps.

    Args:
        source: a NIfTI or DICOM SEG file, a folder, or a datalist (`.json`), in which `image` is the path of the label
            map. Folders in the folder are read too. One with files named after organs, such as `spleen.nii.gz`, is one
            label map, as TotalSegmentator writes it; beside a folder `segmentations` of such files, other files are
            left out. In BIDS derivatives (folders `sub-*`) the files `*_dseg.nii.gz` are read.
        output_dir: folder of the results. It must not hold label maps, except for those that an earlier run wrote.
        label_table: JSON file of the labels, for the names of organs; "" for the 72 organs.
        split: sections of a datalist; the first that holds cases is read.

    Returns:
        One `{"image": path, "case": unique name}` per label map; see `scripts.data.inputs.list_cases`.

    Raises:
        InputError: as `list_cases`, or the folder holds images beside labels, or several kinds of BIDS label maps.
    """
    organs = {*IDS_OF_NAMES, *read_label_table(label_table).values()}
    options = {"split": split, "optional_labels": True, "find": partial(_find, organs=organs)}
    cases = list_cases(source, output_dir=output_dir, **options)
    if output_dir and (mixed := next((case for case in cases if _is_same(case["image"], output_dir)), None)):
        raise InputError(f"output_dir is {printable(mixed['image'])}, where a label map lies; set another folder.")
    return cases


def _is_same(folder: str, other: str | Path) -> bool:
    return os.path.realpath(folder) == os.path.realpath(other)


def _find(path: Path, *, organs: set[str]) -> list[Case]:
    """Find label maps; see `list_label_maps`."""
    if not path.is_dir():
        if not is_nifti(path) and not is_dicom_seg(path):
            raise InputError(
                f"{printable(path)}: holds neither NIfTI (.nii, .nii.gz) nor DICOM SEG; give another path."
            )
        return [{"image": str(path), "case": str(_without_dcm(path))}]
    tree = _Tree(organs)
    found = list(tree.label_maps(path))
    if any(_BIDS_FOLDER.fullmatch(part) for file in found for part in file.relative_to(path).parts[:-1]):
        found = _bids_label_maps(path, found, tree.left_out)
    if not found:
        raise InputError(f"{printable(path)}: holds neither NIfTI (.nii, .nii.gz) nor DICOM SEG; give another path.")
    if tree.left_out:
        listed = [printable(name) for name in sorted(tree.left_out)[:_LISTED_NAMES]]
        listed += ["..."] if len(tree.left_out) > _LISTED_NAMES else []
        where, count = printable(path), len(tree.left_out)
        logger.warning("%s: left out %d that are no label maps: %s", where, count, ", ".join(listed))
    masks = sum(map(_is_plain_folder, found))
    of_masks = f", {masks} of them folders of masks" if masks else ""
    logger.info("%s: found %d label maps%s", printable(path), len(found), of_masks)
    named = [file.parent if file.name == _MASKS_FOLDER else _without_dcm(file) for file in found]
    return [{"image": str(file), "case": str(name)} for file, name in zip(found, named, strict=True)]


def _without_dcm(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".dcm" else path


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not is_nifti(path)


class _Tree:
    """A walk through folders.

    Args:
        organs: names of organs.

    Attributes:
        left_out: paths that are no label maps, relative to the folder where the walk began.
    """

    def __init__(self, organs: set[str]) -> None:
        self.organs = organs
        self.visited: set[str] = set()
        self.left_out: set[str] = set()

    def label_maps(self, root: Path, folder: Path | None = None) -> Iterator[Path]:
        """Yield the label maps of a folder and of those in it, sorted."""
        folder = folder or root
        self.visited.add(os.path.realpath(folder))
        entries = _entries(folder)
        inner = {entry.name: entry for entry in entries if _is_plain_folder(entry)}
        files = [entry for entry in entries if entry.name not in inner]
        self._refuse_images(folder, {*inner})
        if self._is_of_organs(files):
            yield folder
            files = [file for file in files if not is_nifti(file)]
        elif _MASKS_FOLDER in inner and self._is_of_organs(_entries(inner[_MASKS_FOLDER])):
            self._leave_out(root, [file for file in files if is_nifti(file)])  # the image
            files = [file for file in files if not is_nifti(file)]
        maps = [file for file in files if is_nifti(file) or is_dicom_seg(file)]
        self._leave_out(root, set(files) - {*maps})
        yield from maps
        for entry in inner.values():
            if os.path.realpath(entry) in self.visited:
                continue
            if (entry / _OWN_FILE).is_file():
                self._leave_out(root, [entry])  # results of another run
            else:
                yield from self.label_maps(root, entry)

    def _is_of_organs(self, files: Sequence[Path]) -> bool:
        return len({stem(file) for file in files if is_nifti(file)} & self.organs) >= _MIN_ORGANS

    def _leave_out(self, root: Path, paths: Iterable[Path]) -> None:
        self.left_out |= {str(path.relative_to(root)) for path in paths}

    @staticmethod
    def _refuse_images(folder: Path, inner: set[str]) -> None:
        """Refuse a data set of images and labels, as of nnU-Net: its images are no label maps."""
        if images := sorted(inner & {"imagesTr", "imagesTs", "imagesVal"}):
            labels = sorted(inner & {"labelsTr", "labelsTs", "labelsVal"}) or ["a folder of label maps"]
            raise InputError(f"{printable(folder)}: holds images ({images[0]}); give {labels[0]} of it, or a datalist.")


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds but hidden entries, sorted.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{printable(folder)}: cannot be read ({error.strerror}); correct its permissions.") from error


def _bids_label_maps(root: Path, found: list[Path], left_out: set[str]) -> list[Path]:
    """Return the discrete segmentations of a BIDS tree.

    Raises:
        InputError: there is none, or a person has several kinds, such as in two spaces.
    """
    maps = [file for file in found if stem(file).endswith(_BIDS_SUFFIX) or file.is_dir() or not is_nifti(file)]
    if not maps:
        raise InputError(f"{printable(root)}: is a BIDS tree without *_dseg.nii.gz; give the folder of derivatives.")
    left_out |= {str(file.relative_to(root)) for file in {*found} - {*maps}}
    kinds = sorted({_BIDS_PERSON.sub("", stem(file)).strip("_") for file in maps if stem(file).endswith(_BIDS_SUFFIX)})
    if len(kinds) > 1:
        raise InputError(
            f"{printable(root)}: holds {len(kinds)} kinds of label maps: {', '.join(map(printable, kinds))}; give a "
            "datalist or a folder with one of them."
        )
    return maps
