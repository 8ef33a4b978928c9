"""List the frames of UltraBones100k, or of data in its folders, as the datalist that the bundle reads.

    python -m scripts.prepare_ultrabones DATASET_DIR

Folds and test set are by donor: both legs of one donor are always on one side.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError
from scripts.common.files import write_json
from scripts.common.names import is_picture, listed

IMAGES = "UltrasoundImages"
LABELS = ("Label_partial_gradient", "Labels")
"""Of the published code and of its README."""
PUBLISHED_TEST = (2, 7, 8)
PUBLISHED_POOL = (1, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14)
_SPECIMEN = re.compile(r"(?:cadaver)?(\d+)[-_]([A-Za-z]+\d+)[LR]?", re.ASCII)
_Frames = dict[str, list[dict[str, str]]]
"""Specimen to its images and labels."""
_Split = tuple[_Frames, set[str], dict[str, str]]
"""The specimens that are used, those of them for test, and the patient that each counts as."""
logger = logging.getLogger(__name__)


def prepare_ultrabones(
    dataset_dir: Path,
    *,
    out: Path | None = None,
    images: str = IMAGES,
    labels: Sequence[str] = LABELS,
    test: Sequence[int] = PUBLISHED_TEST,
    published_split: bool = False,
) -> Path:
    """Write the datalist of a data set in its published folders.

    Images lie in `<specimen>/<record>/UltrasoundImages` or `<specimen>/Linear18/<record>/UltrasoundImages`, their
    labels in a folder beside it, under the same name up to the first `_` or `-`. A specimen such as `05_S232132L` has a
    number and a donor, here S232132. Images without a label are left out; their number is logged.

    Each training case has a fold: 0, 1, … stand for the donors, so that `fold` leaves one donor out.

    Args:
        dataset_dir: folder of the specimens.
        out: file to write; by default `dataset_0.json` in `dataset_dir`.
        images: name of the folders of images.
        labels: names of the folders of labels, of which the first that exists is taken.
        test: numbers of the specimens for test; the other specimens of their donors go there too.
        published_split: test specimens, training specimens and folds as in the published code, by specimen instead of
            by donor: scores then have seen the other leg of some donors; this is logged.

    Returns:
        The path of the datalist.

    Raises:
        InputError: there is no specimen, or none with labels, or none is left for training.
    """
    folders = (
        {} if not dataset_dir.is_dir() else {path: _SPECIMEN.fullmatch(path.name) for path in dataset_dir.iterdir()}
    )
    specimens = sorted(path for path, match in folders.items() if match and path.is_dir())
    if not specimens:
        raise InputError(f"{dataset_dir}: no folders such as 05_S232132L; give the folder of the specimens.")
    numbers = {path.name: int(folders[path][1]) for path in specimens}
    donors = {path.name: folders[path][2].upper() for path in specimens}
    found = {path.name: list(_frames(path, dataset_dir, images, labels)) for path in specimens}
    if not any(found.values()):
        folder = " or ".join(labels)
        raise InputError(
            f"{dataset_dir}: no image in folders {images} has a label in {folder} beside it; correct them."
        )
    split = _published_split if published_split else partial(_split_by_donor, test=test)
    found, for_test, patients = split(found, numbers, donors)
    content = _sections(found, for_test, patients)
    if not content["training"]:
        raise InputError(f"{dataset_dir}: all specimens with labels are for test; give fewer numbers.")
    out = out or dataset_dir / "dataset_0.json"
    write_json(out, content)
    logger.info("wrote %s: %s", out, ", ".join(f"{len(cases)} {name}" for name, cases in content.items()))
    return out


def _split_by_donor(found: _Frames, numbers: dict[str, int], donors: dict[str, str], *, test: Sequence[int]) -> _Split:
    test_donors = {donors[name] for name, number in numbers.items() if number in test}
    return found, {name for name in found if donors[name] in test_donors}, donors


def _published_split(found: _Frames, numbers: dict[str, int], donors: dict[str, str]) -> _Split:
    found = {name: frames for name, frames in found.items() if numbers[name] in (*PUBLISHED_TEST, *PUBLISHED_POOL)}
    for_test = {name for name in found if numbers[name] in PUBLISHED_TEST}
    if shared := {donors[name] for name in for_test} & {donors[name] for name in found if name not in for_test}:
        names = listed(sorted(name for name in found if donors[name] in shared))
        logger.warning("legs of one donor are in training and test, as published: %s", names)
    return found, for_test, {name: name for name in found}


def _frames(specimen: Path, root: Path, images: str, labels: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield images and labels of a specimen, as paths relative to the root."""
    left_out = 0
    for folder in sorted([*specimen.glob(f"*/{images}"), *specimen.glob(f"*/*/{images}")]):
        beside = next((folder.parent / name for name in labels if (folder.parent / name).is_dir()), None)
        of_time = {} if beside is None else {_time(file): file for file in sorted(beside.iterdir()) if is_picture(file)}
        for image in sorted(file for file in folder.iterdir() if is_picture(file)):
            label = of_time.get(_time(image))
            left_out += label is None
            if label is not None:
                yield {"image": image.relative_to(root).as_posix(), "label": label.relative_to(root).as_posix()}
    if left_out:
        logger.warning("%s: %d images without a label are left out", specimen.name, left_out)


def _time(file: Path) -> str:
    return re.split(r"[_-]", file.stem, maxsplit=1)[0]


def _sections(found: _Frames, for_test: set[str], patients: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    training = sorted({patients[name] for name, frames in found.items() if frames and name not in for_test})
    folds = {patient: fold for fold, patient in enumerate(training)}
    content: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
    for name, frames in found.items():
        more = {"patient": patients[name], "specimen": name}
        if name not in for_test:
            more["fold"] = folds.get(patients[name])
        content["test" if name in for_test else "training"] += [frame | more for frame in frames]
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_ultrabones", description=__doc__)
    parser.add_argument("dataset_dir", type=Path, help="folder of the specimens")
    parser.add_argument("--out", type=Path, help="file to write (default: DATASET_DIR/dataset_0.json)")
    parser.add_argument("--images", default=IMAGES, help=f"name of the folders of images (default: {IMAGES})")
    parser.add_argument("--labels", nargs="+", default=LABELS, help="names of the folders of labels")
    parser.add_argument("--test", nargs="*", type=int, default=PUBLISHED_TEST, help="numbers of the test specimens")
    parser.add_argument("--published_split", action="store_true", help="by specimen as published, not by donor")
    options = parser.parse_args(argv)
    try:
        prepare_ultrabones(**vars(options))
    except (InputError, OSError) as error:
        logger.error("%s", error)
        return 2
    return 0
