"""Turn a data set's folder into checked lists of cases for training, validation and test."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.case_checks import check_cases
from scripts.errors import raise_all
from scripts.folds import take_fold
from scripts.names import name_path, stem, unique_names
from scripts.settings import flag

logger = logging.getLogger(__name__)

Item = dict[str, Any]
SECTIONS = ("training", "validation", "test")
_NIFTI_NAME = re.compile(r"[^.].*\.nii(\.gz)?", re.IGNORECASE)


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
    resample: bool | str = False,
) -> dict[str, list[Item]]:
    """List the cases of ``dataset_dir`` by section, from a Decathlon-style JSON file or from plain folders.

    Without the file, images in ``imagesTr`` are matched to ``labelsTr`` by case name (``img0001`` to
    ``label0001``, ``case_0000`` to ``case``, else equal names); of the sorted names, the last fifth, at least
    one, is validation. ``imagesTs`` becomes test, with labels where ``labelsTs`` exists.

    Args:
        dataset_dir: folder that every path of the datalist must stay in.
        datalist_file: JSON with training, validation and test; absolute, or relative to ``dataset_dir``.
        images_per_case: files of one image, such as four sequences; above 1 there must be a datalist.
        fold: the training cases of this "fold" become validation, if any; see ``scripts.folds.take_fold``.
        required: sections that must not be empty.
        allow_overlap: whether training may share cases with the others, as in an overfit check.
        check: whether to read every file of the required sections first, see ``scripts.case_checks.check_cases``.
        num_classes: number of label values, background included; only the check needs it.
        label_sets: the sets of values that a label may have, instead of ``num_classes``.
        ignored_label: a further value that training labels may have, for voxels that the loss leaves out.
        resample: whether the check lets the files of an image lie on different grids.

    Returns:
        Every section, empty ones too. Each item holds absolute paths ``image`` (a list where it has several) and
        ``label`` (test may lack it), a unique ``case`` (the image's name, with its folders where names repeat; a
        ``case`` of the datalist is ignored), and the datalist's other text fields as they are.

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
    source = file if file.is_file() else root
    sections = _from_json(file, root, images_per_case) if file.is_file() else _from_folders(root, file, images_per_case)
    take_fold(sections, fold, source)
    _refuse_empty(sections, required, source)
    if not flag(allow_overlap, "allow_overlap"):
        _refuse_repeats(sections, source)
    items = [item for name in SECTIONS for item in sections[name]]
    for item, case in zip(items, unique_names([name_path(item["image"]) for item in items]), strict=True):
        item["case"] = case
    if flag(check, "check_data"):
        todo = [item for name in required for item in sections[name]]
        cleaned = {} if ignored_label is None else {i["label"]: ignored_label for i in sections["training"]}
        options = {"num_classes": num_classes, "label_sets": label_sets, "ignored": cleaned}
        check_cases(todo, **options, resample=flag(resample, "resample"))
    logger.info("%s: %s", source, ", ".join(f"{len(items)} {name}" for name, items in sections.items()))
    return sections


def image_files(item: Mapping[str, Any]) -> list[str]:
    """List the files of an item's image."""
    return [item["image"]] if isinstance(item["image"], str) else list(item["image"])


def _refuse_empty(sections: Mapping[str, list[Item]], required: Sequence[str], source: Path) -> None:
    for name in required:
        if not sections[name]:
            raise ValueError(
                f'{source}: no {name} cases; list some under "{name}", or remove the datalist and put at '
                "least two cases into imagesTr and labelsTr, to be split 80/20"
            )


def _show(value: Any) -> str:
    return f"{value!r:.200}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _from_json(file: Path, root: Path, images_per_case: int) -> dict[str, list[Item]]:
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
                item = _parse_entry(entry, root, images_per_case, label_optional=name == "test")
                sections[name].append(item)
            except ValueError as error:
                problems.append(f"{name}[{index}]: {error}")
    raise_all(problems, file, "mend these entries")
    return sections


def _parse_entry(entry: Any, root: Path, images_per_case: int, *, label_optional: bool) -> Item:
    if isinstance(entry, str) and label_optional and images_per_case == 1:
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"is {_show(entry)}, need an object with image and label")
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
        raise ValueError(f"image is {shown}, need a list of {images_per_case} paths")
    return [_path_inside(path, root, key="image") for path in value]


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


def _from_folders(root: Path, missing: Path, images_per_case: int) -> dict[str, list[Item]]:
    if images_per_case > 1:
        raise ValueError(f"{missing}: no such datalist; make it: python -m scripts.prepare_brats {root}")
    if not (root / "imagesTr").is_dir() and not (root / "imagesTs").is_dir():
        raise ValueError(
            f"{root}: neither {missing.name or 'a datalist'} nor a folder imagesTr is there; set "
            "dataset_dir, or for BTCV run python -m scripts.prepare_btcv RawData.zip DATASET_DIR"
        )
    logger.warning("%s: no such file, so the last fifth of imagesTr by name is validation", missing)
    problems: list[str] = []
    cases = _pair_folders(root / "imagesTr", root / "labelsTr", problems)
    test = _pair_folders(root / "imagesTs", root / "labelsTs", problems, label_optional=True)
    raise_all(problems, root, "add the missing files, or remove or rename these")
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
    # Validation and test may share cases: both only measure.
    for other in ("validation", "test"):
        problems += [f"{path}: in training and {other}" for path in sorted(files["training"] & files[other])]
    mend = "cases seen in training cannot measure it; keep each file in one place, or give --allow_overlap true"
    raise_all(problems, source, mend)
