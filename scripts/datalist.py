"""Turn a data set's folder into checked lists of cases for training, validation and test."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.cases import AFFINE_TOLERANCE_MM
from scripts.files import StoredVolume, read_nifti
from scripts.names import stem, unique_names
from scripts.settings import flag

logger = logging.getLogger(__name__)

Item = dict[str, str]
SECTIONS = ("training", "validation", "test")
_LISTED_VALUES = 8
_NIFTI_NAME = re.compile(r"[^.].*\.nii(\.gz)?", re.IGNORECASE)


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    *,
    datalist_file: str = "dataset_0.json",
    num_classes: int | None = None,
    check: bool | str = True,
    required: Sequence[str] = ("training", "validation"),
    allow_overlap: bool | str = False,
) -> dict[str, list[Item]]:
    """List the cases of ``dataset_dir`` by section, from a Decathlon-style JSON file or from plain folders.

    Without the file, images in ``imagesTr`` are matched to ``labelsTr`` by case name (``img0001`` to
    ``label0001``, ``case_0000`` to ``case``, else equal names); of the sorted names, the last fifth, at least
    one, is validation. ``imagesTs`` becomes test, with labels where ``labelsTs`` exists.

    Args:
        dataset_dir: folder that every path of the datalist must stay in.
        datalist_file: JSON with training, validation and test; absolute, or relative to ``dataset_dir``.
        num_classes: number of label values, background included; only the check needs it.
        check: whether to read every file of the required sections first, see ``check_cases``.
        required: sections that must not be empty.
        allow_overlap: whether training may share cases with the others, as in an overfit check.

    Returns:
        Every section, empty ones too. Each item holds absolute paths ``image`` and ``label`` (test may lack
        it), a unique ``case`` (the image's name, with its folders where names repeat; a ``case`` of the
        datalist is ignored), and the datalist's other text fields as they are.

    Raises:
        ValueError: nothing is found, the JSON is malformed, a path leaves ``dataset_dir``, a required section
            is empty, an image is listed twice, training shares a file with another section, the check fails.

    Source:
        The format of ``monai.data.load_decathlon_datalist``, which follows any path; here paths stay inside,
        because a datalist may come from someone else.
    """
    root = Path(os.path.normpath(Path.cwd() / dataset_dir))
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; set dataset_dir to the folder that holds the data set")
    if unknown := sorted(set(required) - set(SECTIONS)):
        raise ValueError(f"required names unknown sections {unknown}; use some of {list(SECTIONS)}")
    file = root / datalist_file
    sections = _from_json(file, root) if file.is_file() else _from_folders(root, file)
    source = file if file.is_file() else root
    for name in required:
        if not sections[name]:
            raise ValueError(
                f'{source}: no {name} cases; list some under "{name}", or remove the datalist and put at '
                "least two cases into imagesTr and labelsTr, to be split 80/20"
            )
    if not flag(allow_overlap, "allow_overlap"):
        _refuse_repeats(sections, source)
    items = [item for name in SECTIONS for item in sections[name]]
    for item, case in zip(items, unique_names([item["image"] for item in items]), strict=True):
        item["case"] = case
    if flag(check, "check_data"):
        check_cases([item for name in required for item in sections[name]], num_classes=num_classes or 0)
    logger.info("%s: %s", source, ", ".join(f"{len(items)} {name}" for name, items in sections.items()))
    return sections


def check_cases(items: Sequence[Mapping[str, str]], *, num_classes: int, workers: int = 4) -> None:
    """Read every image and label to its end, and name everything that training would stumble over, at once.

    An image must be a finite 3-D NIfTI volume; its label too, on the same grid (affines equal to 0.1 mm),
    with whole values 0..``num_classes`` - 1. A label that is all background is only warned about.

    Args:
        items: cases with ``image`` and, where there is one, ``label``.
        num_classes: number of label values, background included.
        workers: threads; each holds one volume in memory at a time. Threads do, since zlib releases the GIL.

    Raises:
        ValueError: all problems, one per line, the path first.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; set it to the number of labels, background included")
    check = partial(_case_problems, num_classes=num_classes)
    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(pool.map(check, items), total=len(items), desc="checking cases", unit="case", disable=None)
        problems = [problem for found in bar for problem in found]
    mend = "mend or replace the files, drop the cases from the datalist, or skip the check with --check_data false"
    _raise_all(problems, f"check of {len(items)} cases", mend)


def _raise_all(problems: list[str], where: object, mend: str) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError("\n".join([f"{where}: {count}; {mend}", *problems]))


def _show(value: Any) -> str:
    return f"{value!r:.200}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _from_json(file: Path, root: Path) -> dict[str, list[Item]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not readable as JSON ({error}); mend or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}, need an object with training and validation")
    sections: dict[str, list[Item]] = {name: [] for name in SECTIONS}
    problems = []
    for name in SECTIONS:
        entries = content.get(name, [])
        if not isinstance(entries, list):
            problems.append(f"{name}: is {_show(entries)}, need a list")
            continue
        for index, entry in enumerate(entries):
            try:
                sections[name].append(_parse_entry(entry, root, label_optional=name == "test"))
            except ValueError as error:
                problems.append(f"{name}[{index}]: {error}")
    _raise_all(problems, file, "mend these entries")
    return sections


def _parse_entry(entry: Any, root: Path, *, label_optional: bool) -> Item:
    if isinstance(entry, str) and label_optional:
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"is {_show(entry)}, need an object with image and label")
    item = {key: value for key, value in entry.items() if isinstance(value, str)}
    item["image"] = _path_inside(entry.get("image"), root, key="image")
    if not label_optional or entry.get("label") is not None:
        item["label"] = _path_inside(entry.get("label"), root, key="label")
    return item


def _path_inside(value: Any, root: Path, *, key: str) -> str:
    """Join lexically: a datalist cannot make symbolic links, and labs link their data into place."""
    # Unprintable covers NUL, which the file system refuses, and line breaks, which would forge log lines.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{key} is {_show(value)}, need one path as text")
    path = Path(os.path.normpath(root / value))
    real_root = root.resolve()
    if path.is_relative_to(real_root):
        path = root / path.relative_to(real_root)
    if not path.is_relative_to(root):
        raise ValueError(f"{key} {_show(value)} leaves {root}; use a path inside it, or link the data into it")
    if not _NIFTI_NAME.fullmatch(path.name):
        raise ValueError(f"{key} {_show(value)} is not a .nii or .nii.gz file; convert it")
    return str(path)


def _from_folders(root: Path, missing: Path) -> dict[str, list[Item]]:
    if not (root / "imagesTr").is_dir() and not (root / "imagesTs").is_dir():
        raise ValueError(
            f"{root}: neither {missing.name or 'a datalist'} nor a folder imagesTr is there; set "
            "dataset_dir, or for BTCV run python -m scripts.prepare_btcv RawData.zip DATASET_DIR"
        )
    logger.warning("%s: no such file, so the last fifth of imagesTr by name is validation", missing)
    problems: list[str] = []
    cases = _pair_folders(root / "imagesTr", root / "labelsTr", problems)
    test = _pair_folders(root / "imagesTs", root / "labelsTs", problems, label_optional=True)
    _raise_all(problems, root, "add the missing files, or remove or rename these")
    cut = len(cases) - max(1, len(cases) // 5)
    return {"training": cases[: max(cut, 0)], "validation": cases[max(cut, 0) :], "test": test}


def _pair_folders(image_dir: Path, label_dir: Path, problems: list[str], *, label_optional: bool = False) -> list[Item]:
    images, labels = _by_match_name(image_dir, problems), _by_match_name(label_dir, problems)
    if label_optional and not label_dir.is_dir():
        return [{"image": str(path)} for path in images.values()]
    problems += [f"{path}: no label in {label_dir.name}" for key, path in images.items() if key not in labels]
    problems += [f"{path}: no image in {image_dir.name}" for key, path in labels.items() if key not in images]
    return [{"image": str(images[key]), "label": str(labels[key])} for key in images if key in labels]


def _by_match_name(folder: Path, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _NIFTI_NAME.fullmatch(path.name):
            continue
        key = re.sub(r"^(img|label)(?=\d)", "", stem(path).removesuffix("_0000"))
        if found.setdefault(key, path) is not path:
            problems.append(f"{path}: the same case as {found[key].name}")
    return found


def _refuse_repeats(sections: Mapping[str, list[Item]], source: Path) -> None:
    files: dict[str, set[str]] = {}
    problems = []
    for name, items in sections.items():
        images = Counter(os.path.realpath(item["image"]) for item in items)
        problems += [f"{image}: {n} times in {name}" for image, n in images.items() if n > 1]
        files[name] = {os.path.realpath(item[key]) for item in items for key in ("image", "label") if key in item}
    # Validation and test may share cases: both only measure.
    for other in ("validation", "test"):
        problems += [f"{path}: in training and {other}" for path in sorted(files["training"] & files[other])]
    mend = "cases seen in training cannot measure it; keep each file in one place, or give --allow_overlap true"
    _raise_all(problems, source, mend)


def _case_problems(item: Mapping[str, str], num_classes: int) -> list[str]:
    problems: list[str] = []
    grid = None
    try:
        image = read_nifti(item["image"])
        grid = image.stored.shape, image.affine
        # NaN and infinity always come through as the smallest or the largest value.
        ends = np.array([image.stored.min(), image.stored.max()], np.float64) * image.slope + image.inter
        if not np.isfinite(ends).all():
            problems.append(f"{item['image']}: holds NaN or infinite values")
        del image
    except ValueError as error:
        problems.append(f"{item['image']}: {error}")
    if "label" in item:
        try:
            found = _label_problems(read_nifti(item["label"]), grid, num_classes, path=item["label"])
            problems += [f"{item['label']}: {problem}" for problem in found]
        except ValueError as error:
            problems.append(f"{item['label']}: {error}")
    return problems


def _label_problems(
    label: StoredVolume, grid: tuple[tuple[int, ...], np.ndarray] | None, num_classes: int, *, path: str
) -> list[str]:
    problems = []
    if grid is not None and label.stored.shape != grid[0]:
        problems.append(f"has shape {label.stored.shape}, its image {grid[0]}")
    if grid is not None and (gap := np.abs(label.affine - grid[1]).max()) > AFFINE_TOLERANCE_MM:
        problems.append(f"has an affine up to {gap:.3g} mm from its image's; resample it on the image's grid")
    fractional, outside, background_only = _unfit_values(label, num_classes)
    if fractional.size:
        problems.append(f"label values {_list_values(fractional)} are not whole numbers")
    if outside.size:
        problems.append(f"label values {_list_values(outside)} are outside 0..{num_classes - 1}")
    if background_only:
        logger.warning("%s: the label is all background", path)
    return problems


def _unfit_values(label: StoredVolume, num_classes: int) -> tuple[np.ndarray, np.ndarray, bool]:
    fractional = outside = np.array([], np.float64)
    background_only = True
    # By plane: float temporaries of the whole would be gigabytes.
    for plane in np.moveaxis(label.stored, -1, 0):
        values = plane.astype(np.float64) * label.slope + label.inter
        whole = values == np.rint(values)
        fractional = _smallest(fractional, values[~whole])
        outside = _smallest(outside, values[whole & ((values < 0) | (values >= num_classes))])
        background_only = background_only and not values.any()
    return fractional, outside, background_only


def _smallest(known: np.ndarray, more: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([known, more]))[: _LISTED_VALUES + 1] if more.size else known


def _list_values(values: np.ndarray) -> str:
    listed = ", ".join(f"{value:.10g}" for value in values[:_LISTED_VALUES])
    return f"{listed}, ..." if values.size > _LISTED_VALUES else listed
