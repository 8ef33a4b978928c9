"""List images and their label maps as a datalist, split by subject; nothing is copied or changed.

`python -m scripts.prepare_pairs IMAGES LABELS OUT`, such as the images of `scripts.prepare_ukbb` and the label maps
that the bundle `solf_filter` cleaned.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scripts.common.errors import InputError, raise_all
from scripts.common.files import write_json
from scripts.common.locks import FolderLock
from scripts.common.names import is_nifti, listed, printable, stem
from scripts.pretrain.links import link

logger = logging.getLogger(__name__)

_POSTFIX = re.compile(r"_(cleaned|seg)$")  # of label maps, as solf_filter and inference name them
_SCAN = re.compile(r"(\d+)_\d+_\d+", re.ASCII)  # subject, instance, array


def prepare_pairs(
    images: Path, labels: Path, out_dir: Path, *, validation: int = 50, test: int = 0, seed: int = 0
) -> Path:
    """Write `dataset_0.json` and the links `images` and `labels` to the folders.

    All scans of a subject are in one section. The split depends on the names of the subjects and the seed alone.

    Args:
        images: folder of images, such as `1234567_2_0.nii.gz`.
        labels: folder of label maps of the same names, to which `_cleaned` or `_seg` may be added.
        out_dir: folder of the data set.
        validation: number of subjects for validation.
        test: number of subjects for test.
        seed: of the split.

    Returns:
        The path of the datalist.

    Raises:
        InputError: a folder is missing, no image has a label, two label maps are of one image, a number is negative, or
            too few subjects are left for training.
    """
    if min(validation, test) < 0:
        raise InputError(f"validation is {validation} and test {test}: give 0 or more subjects.")
    pairs = find_pairs(images, labels)
    subjects = sorted({subject_of(case) for case in pairs}, key=lambda name: _digest(name, seed))
    if validation + test >= len(subjects):
        raise InputError(
            f"{printable(images)}: {len(subjects)} subjects for {validation} of validation, {test} of test and some of "
            "training; lower --validation or --test."
        )
    names = ["validation"] * validation + ["test"] * test
    section_of = dict(zip(subjects, names, strict=False))
    sections: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for case, (image, label) in pairs.items():
        item = {"image": f"images/{image}", "label": f"labels/{label}", "patient": subject_of(case)}
        sections[section_of.get(subject_of(case), "training")].append(item)
    path = out_dir / "dataset_0.json"
    with FolderLock(out_dir, setting="OUT"):
        for folder, name in ((images, "images"), (labels, "labels")):
            link(folder, out_dir / name)
        write_json(path, {"name": "images and label maps", **sections})
    counts = ", ".join(f"{len(items)} {name}" for name, items in sections.items())
    logger.info("wrote %s: %d subjects; scans: %s", path, len(subjects), counts)
    return path


def find_pairs(images: Path, labels: Path) -> dict[str, tuple[str, str]]:
    """Return case to the names of its image and label map, sorted; warn of images and label maps without the other."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise InputError(
                f"{printable(folder)}: not a folder; give the folder of the images and that of the labels."
            )
    of_images = {stem(path): path.name for path in sorted(images.iterdir()) if is_nifti(path)}
    of_labels = defaultdict(list)
    for path in sorted(labels.iterdir()):
        if is_nifti(path):
            of_labels[_POSTFIX.sub("", stem(path))].append(path.name)
    twice = [f"{', '.join(names)}: label maps of one image" for names in of_labels.values() if len(names) > 1]
    raise_all(twice, labels, "keep one of each")
    for found, others, what in ((of_images, of_labels, "images"), (of_labels, of_images, "label maps")):
        if alone := [name for name in found if name not in others]:
            logger.warning("left out %d %s without the other: %s", len(alone), what, listed(alone))
    pairs = {case: (image, of_labels[case][0]) for case, image in of_images.items() if case in of_labels}
    if not pairs:
        raise InputError(
            f"{printable(labels)}: no label map is named like an image of {printable(images)}; rename them."
        )
    return pairs


def subject_of(case: str) -> str:
    """Return the subject of a scan of UK Biobank; any other case is one of its own.

    >>> subject_of("1234567_2_0"), subject_of("s0001")
    ('1234567', 's0001')
    """
    match = _SCAN.fullmatch(case)
    return match[1] if match else case


def _digest(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit code 2 and one message."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_pairs", description=__doc__)
    parser.add_argument("images", type=Path, help="folder of images, such as OUT/images of scripts.prepare_ukbb")
    parser.add_argument(
        "labels", type=Path, help="folder of label maps of the same names, perhaps with _cleaned or _seg"
    )
    parser.add_argument("out", type=Path, help="folder for dataset_0.json and links to the folders")
    parser.add_argument("--validation", type=int, default=50, help="subjects for validation (default: 50)")
    parser.add_argument("--test", type=int, default=0, help="subjects for test (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    numbers = {name: getattr(args, name) for name in ("validation", "test", "seed")}
    try:
        prepare_pairs(args.images, args.labels, args.out, **numbers)
    except (InputError, OSError) as error:
        parser.exit(2, f"prepare_pairs: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "prepare_pairs: stopped; run again\n")
    return 0
