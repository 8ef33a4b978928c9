"""List images and their label maps as a datalist, split by patient: `python -m scripts.make_datalist DATA`.

DATA is the folder that holds the folders of both; the datalist is written there.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.common.errors import InputError
from scripts.common.files import write_json
from scripts.common.names import is_nifti, listed, stem
from scripts.data.datalist import DATALIST_FILE, SECTIONS

logger = logging.getLogger(__name__)

UKBB_PATIENT = r"(\d{7})_\d+_\d+"
"""Names of UK Biobank's scans: the participant, the visit, the repeat."""


def pair_datalist(
    data: Path,
    *,
    images: str = "images",
    labels: str = "labels",
    validation: float = 0.1,
    test: float = 0.0,
    patient: str = UKBB_PATIENT,
    seed: int = 0,
) -> dict[str, list[dict[str, str]]]:
    """Pair images with label maps and split them, all scans of a patient together.

    The label map of `1000001_2_0.nii.gz` has its name, or its name and more after an underscore, such as
    `1000001_2_0_cleaned.nii.gz`. Images and label maps without the other are left out, and named in the log.

    Args:
        data: folder of the data set.
        images: folder of images in it.
        labels: folder of label maps in it.
        validation: share of the patients for validation, at least one patient.
        test: share of the patients for test, which may be 0.
        patient: regular expression whose first group is the patient in the name of an image; an image with another
            name is a patient of its own.
        seed: of the split.

    Returns:
        Lists of `image`, `label` (relative to `data`) and `patient` by section.

    Raises:
        InputError: a share or the expression is unusable, a folder is missing, an image has several label maps, there
            is no pair, or there are fewer patients than sections.
    """
    if not (0 < validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise InputError(f"validation is {validation} and test {test}: give shares whose sum is below 1.")
    pairs = _pairs(data, images, labels)
    name_of = _patients([stem(image) for image, _ in pairs], patient)
    patients = sorted(set(name_of))
    numbers = [max(1, round(share * len(patients))) if share else 0 for share in (validation, test)]
    if sum(numbers) >= len(patients):
        raise InputError(f"{data}: {len(patients)} patients are too few to split; lower validation and test.")
    order = [patients[index] for index in np.random.default_rng(seed).permutation(len(patients))]
    section_of = dict.fromkeys(order, "training") | dict.fromkeys(order[: sum(numbers)], "test")
    section_of |= dict.fromkeys(order[: numbers[0]], "validation")
    sections: dict[str, list[dict[str, str]]] = {name: [] for name in SECTIONS}
    for (image, label), name in zip(pairs, name_of, strict=True):
        item = {"image": image.relative_to(data).as_posix(), "label": label.relative_to(data).as_posix()}
        sections[section_of[name]].append({**item, "patient": name})
    return sections


def _patients(names: Sequence[str], pattern: str) -> list[str]:
    try:
        matches = [re.fullmatch(pattern, name) for name in names]
        return [match[1] if match else name for match, name in zip(matches, names, strict=True)]
    except (re.error, IndexError) as error:
        raise InputError(f"patient is {pattern!r}: give a regular expression with one group ({error}).") from error


def _pairs(data: Path, images: str, labels: str) -> list[tuple[Path, Path]]:
    """Return images with their label maps, by name."""
    found, maps = ({stem(path): path for path in _volumes(data / folder)} for folder in (images, labels))
    label_of: dict[str, Path] = {}
    without_image = []
    for name, path in maps.items():
        parts = name.split("_")
        beginnings = ["_".join(parts[:n]) for n in range(len(parts), 0, -1)]  # the longest first
        image = next((beginning for beginning in beginnings if beginning in found), None)
        if image is None:
            without_image.append(path.name)
        elif label_of.setdefault(image, path) is not path:
            raise InputError(f"{path}: also {label_of[image].name} is a label map of {found[image].name}; keep one.")
    without_label = [path.name for name, path in found.items() if name not in label_of]
    for names, other in ((without_label, "a label map"), (without_image, "an image")):
        if names:
            logger.warning("%d files without %s are left out: %s", len(names), other, listed(names))
    if not label_of:
        raise InputError(f"{data}: no image in {images} has a label map in {labels}; name them alike.")
    return [(found[name], label_of[name]) for name in sorted(label_of)]


def _volumes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; set images and labels to folders in DATA.")
    return sorted(path for path in folder.iterdir() if is_nifti(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit code 2 and one line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_datalist", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--images", default="images", help="folder of images in DATA (default: images)")
    parser.add_argument("--labels", default="labels", help="folder of label maps in DATA (default: labels)")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the patients (default: 0.1)")
    parser.add_argument("--test", type=float, default=0.0, help="share of the patients (default: 0)")
    parser.add_argument(
        "--patient", default=UKBB_PATIENT, help="expression whose group is the patient in a name (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    parser.add_argument("--out", default=DATALIST_FILE, help="file to write in DATA (default: %(default)s)")
    args = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args["data"] / args.pop("out")
    try:
        sections = pair_datalist(**args)
        write_json(out, sections)
    except (InputError, OSError) as error:
        parser.exit(2, f"make_datalist: error: {error}\n")
    logger.info("%s: %s", out, ", ".join(f"{len(items)} {name}" for name, items in sections.items()))
    return 0
