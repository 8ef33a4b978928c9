"""Loading and checking datalists: the cases of a data set for training, validation and test."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError, raise_all
from scripts.common.flags import parse_flag
from scripts.common.names import is_nifti, name_path, stem, unique_names
from scripts.data.case_checks import ImageCheck, check_cases, image_files
from scripts.data.folds import hold_out_fold

logger = logging.getLogger(__name__)

Item = dict[str, Any]
SECTIONS = ("training", "validation", "test")


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    *,
    datalist_file: str = "dataset_0.json",
    images_per_case: int = 1,
    fold: int | None = None,
    required: Sequence[str] = ("training", "validation"),
    allow_overlap: bool | str = False,
    check: bool | str = True,
    num_classes: int | None = None,
    label_sets: Sequence[Sequence[int]] | None = None,
    ignored_label: int | None = None,
    check_image: ImageCheck | None = None,
) -> dict[str, list[Item]]:
    """List the cases of `dataset_dir` by section, from a Decathlon-style JSON file or from folders.

    Without the file, images in `imagesTr` are matched to `labelsTr` by case name (`img0001` to `label0001`, `case_0000`
    to `case`, else equal names), and the last fifth of the sorted names, at least one, is validation. `imagesTs`
    becomes test, with labels if `labelsTs` exists.

    Args:
        dataset_dir: folder that contains all files of the datalist.
        datalist_file: JSON with training, validation and test; absolute, or relative to `dataset_dir`.
        images_per_case: number of files of one image, such as four sequences; above 1 a datalist is required.
        fold: training cases of this fold are used for validation; see `scripts.data.folds.hold_out_fold`.
        required: sections that must not be empty.
        allow_overlap: whether training may share cases with the other sections, for tests of overfitting.
        check: whether to check all files of the required sections; see `scripts.data.case_checks.check_cases`.
        num_classes: number of label values including the background; only the check needs it.
        label_sets: the sets of values that a label may hold, instead of `num_classes`.
        ignored_label: additional value that training labels may hold, for voxels that the loss ignores.
        check_image: checks the files of an image together; see `scripts.data.case_checks.check_cases`.

    Returns:
        All sections, also empty ones. Each item holds absolute paths `image` (a list if there are several) and `label`
        (optional in test), a unique `case` (the name of the image, with its folders if names repeat; a `case` of the
        datalist is ignored), and the other text fields of the datalist.

    Raises:
        InputError: there are no cases, the JSON is malformed, a path leads out of `dataset_dir`, a required section is
            empty, an image is listed twice, training shares a file with another section, or the check fails.

    Source:
        The format of `monai.data.load_decathlon_datalist`, which opens any path; here paths must lie in `dataset_dir`,
        because a datalist may come from someone else.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / "dataset_0.json").write_text('{"test": ["imagesTs/ct.nii.gz"]}')
    >>> load_datalist(root, required=["test"], check=False)["test"][0]["case"]
    'ct'
    """
    root = Path(os.path.normpath(Path.cwd() / dataset_dir))
    if not root.is_dir():
        raise InputError(f"{root}: not a folder; set dataset_dir to the folder that holds the data set")
    if unknown := sorted(set(required) - set(SECTIONS)):
        raise InputError(f"required lists unknown sections {unknown}; use some of {list(SECTIONS)}")
    file = root / datalist_file
    source = file if file.is_file() else root
    sections = _from_json(file, root, images_per_case) if file.is_file() else _from_folders(root, file, images_per_case)
    hold_out_fold(sections, fold, source)
    _refuse_empty(sections, required, source)
    if not parse_flag(allow_overlap, "allow_overlap"):
        _refuse_repeats(sections, source)
    items = [item for name in SECTIONS for item in sections[name]]
    for item, case in zip(items, unique_names([name_path(item["image"]) for item in items]), strict=True):
        item["case"] = case
    if parse_flag(check, "check_data"):
        todo = [item for name in required for item in sections[name]]
        ignored = {} if ignored_label is None else {i["label"]: ignored_label for i in sections["training"]}
        check_cases(todo, num_classes=num_classes, label_sets=label_sets, ignored=ignored, check_image=check_image)
    logger.info("loaded %s: %s", source, ", ".join(f"{len(items)} {name}" for name, items in sections.items()))
    return sections


def _refuse_empty(sections: Mapping[str, list[Item]], required: Sequence[str], source: Path) -> None:
    for name in required:
        if not sections[name]:
            raise InputError(
                f'{source}: no {name} cases; list some under "{name}", or remove the datalist and put at '
                "least two cases into imagesTr and labelsTr, which are split 80/20"
            )


def _show(value: Any) -> str:
    """Show a value of JSON in a message, containers by their type only."""
    return f"{value!r:.200}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _from_json(file: Path, root: Path, images_per_case: int) -> dict[str, list[Item]]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, need an object with training and validation")
    sections: dict[str, list[Item]] = {name: [] for name in SECTIONS}
    problems = []
    for name in SECTIONS:
        entries = content.get(name, [])
        if not isinstance(entries, list):
            problems.append(f"{name}: is {_show(entries)}, need a list")
            continue
        for index, entry in enumerate(entries):
            try:
                item = _parse_entry(entry, root, images_per_case, label_optional=name == "test")
                sections[name].append(item)
            except InputError as error:
                problems.append(f"{name}[{index}]: {error}")
    raise_all(problems, file, "correct these entries")
    return sections


def _parse_entry(entry: Any, root: Path, images_per_case: int, *, label_optional: bool) -> Item:
    if isinstance(entry, str) and label_optional and images_per_case == 1:
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise InputError(f"is {_show(entry)}, need an object with image and label")
    item: Item = {key: value for key, value in entry.items() if isinstance(value, str) or key == "fold"}
    item["image"] = _image_inside(entry.get("image"), root, images_per_case)
    if not label_optional or entry.get("label") is not None:
        item["label"] = _path_inside(entry.get("label"), root, key="label")
    return item


def _image_inside(value: Any, root: Path, images_per_case: int) -> str | list[str]:
    if images_per_case == 1:
        return _path_inside(value, root, key="image")
    if not isinstance(value, list) or len(value) != images_per_case:
        shown = f"a list of {len(value)}" if isinstance(value, list) else _show(value)
        raise InputError(f"image is {shown}, need a list of {images_per_case} paths")
    return [_path_inside(path, root, key="image") for path in value]


def _path_inside(value: Any, root: Path, *, key: str) -> str:
    """Join a path to the root and refuse one that leads out of it, but follow symbolic links, which users make."""
    # Not printable: NUL, which the file system refuses, and line breaks, which could fake log lines.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InputError(f"{key} is {_show(value)}, need one path as text")
    path = Path(os.path.normpath(root / value))
    real_root = root.resolve()
    if path.is_relative_to(real_root):
        path = root / path.relative_to(real_root)
    if not path.is_relative_to(root):
        raise InputError(f"{key} {_show(value)} is outside {root}; use a path inside it, or link the data into it")
    if not is_nifti(path):
        raise InputError(f"{key} {_show(value)} is not a .nii or .nii.gz file; convert it")
    return str(path)


def _from_folders(root: Path, missing: Path, images_per_case: int) -> dict[str, list[Item]]:
    if images_per_case > 1:
        raise InputError(f"{missing}: no such datalist; images in several files need one, see the bundle's docs")
    if not (root / "imagesTr").is_dir() and not (root / "imagesTs").is_dir():
        raise InputError(
            f"{root}: has neither {missing.name or 'a datalist'} nor a folder imagesTr; set dataset_dir to a folder "
            "that has one of them; the bundle's docs say how to prepare a download"
        )
    logger.warning("%s: no such file, so the last fifth of imagesTr by name is validation", missing)
    problems: list[str] = []
    cases = _pair_folders(root / "imagesTr", root / "labelsTr", problems)
    test = _pair_folders(root / "imagesTs", root / "labelsTs", problems, label_optional=True)
    raise_all(problems, root, "add the missing files, or remove or rename these")
    n = max(0, len(cases) - max(1, len(cases) // 5))
    return {"training": cases[:n], "validation": cases[n:], "test": test}


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
        if not is_nifti(path):
            continue
        key = re.sub(r"^(img|label)(?=\d)", "", stem(path).removesuffix("_0000"))
        if found.setdefault(key, path) is not path:
            problems.append(f"{path}: the same case as {found[key].name}")
    return found


def _refuse_repeats(sections: Mapping[str, list[Item]], source: Path) -> None:
    files: dict[str, set[str]] = {}
    patients: dict[str, set[str]] = {}
    problems = []
    for name, items in sections.items():
        images = Counter(os.path.realpath(file) for item in items for file in image_files(item))
        problems += [f"{image}: {n} times in {name}" for image, n in images.items() if n > 1]
        labels = [item["label"] for item in items if "label" in item]
        files[name] = {os.path.realpath(file) for file in [*labels, *(f for item in items for f in image_files(item))]}
        patients[name] = {item["patient"] for item in items if "patient" in item}
    split = sorted(patients["training"] & patients["validation"])
    problems += [f"patient {name}: in training and validation" for name in split]
    # Validation and test may share cases: neither trains the network.
    for other in ("validation", "test"):
        problems += [f"{path}: in training and {other}" for path in sorted(files["training"] & files[other])]
    fix = "training cases must not be used to measure it; list each file once, or set allow_overlap to true"
    raise_all(problems, source, fix)
