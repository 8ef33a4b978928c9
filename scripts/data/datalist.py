"""Loading and checking datalists: the cases of a data set for training, validation and test."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from scripts.common.errors import InputError, raise_all
from scripts.common.flags import parse_flag
from scripts.common.names import PICTURE_SUFFIXES, is_nifti, is_picture, name_path, unique_names
from scripts.data.case_checks import ImageCheck, ImageReader, check_cases, image_files
from scripts.data.folder_pairs import pair_folders
from scripts.data.folds import hold_out_fold

logger = logging.getLogger(__name__)

Item = dict[str, Any]
SECTIONS = ("training", "validation", "test")
DATALIST_FILE = "dataset_0.json"


def load_datalist(
    dataset_dir: str | os.PathLike[str],
    *,
    datalist_file: str = DATALIST_FILE,
    images_per_case: int = 1,
    fold: int | None = None,
    required: Sequence[str] = ("training", "validation"),
    need_labels: bool = False,
    optional_labels: bool = False,
    allow_overlap: bool | str = False,
    check: bool | str = True,
    num_classes: int | None = None,
    label_sets: Sequence[Sequence[int]] | None = None,
    ignored_label: int | None = None,
    ignored_in: Sequence[str] = ("training",),
    check_image: ImageCheck | None = None,
    read_image: ImageReader | None = None,
    pictures: bool = False,
) -> dict[str, list[Item]]:
    """List the cases of `dataset_dir` by section, from a Decathlon-style JSON file or from folders.

    Without the file, if it has its usual name, images in `imagesTr` are matched to `labelsTr` by case name (`img0001`
    to `label0001`, `case_0000` to `case`, else equal names), and the last fifth of the sorted names, at least one, is
    validation. `imagesTs` becomes test, with labels if `labelsTs` exists.

    Args:
        dataset_dir: folder that contains all files of the datalist.
        datalist_file: JSON with training, validation and test; absolute, or relative to `dataset_dir`.
        images_per_case: number of files of one image, such as four sequences; above 1 a datalist is required.
        fold: training cases of this fold are used for validation; see `scripts.data.folds.hold_out_fold`.
        required: sections that must not be empty.
        need_labels: whether every case of these sections needs a label, also in test.
        optional_labels: whether no section of the JSON file needs labels.
        allow_overlap: whether training may share cases with the other sections, for tests of overfitting.
        check: whether to check all files of the required sections; see `scripts.data.case_checks.check_cases`.
        num_classes: number of label values including the background; only the check needs it.
        label_sets: the sets of values that a label may hold, instead of `num_classes`.
        ignored_label: additional value that labels may hold, for voxels that the loss ignores; also added to their
            items.
        ignored_in: sections whose labels may hold it.
        check_image: checks the files of an image together; see `scripts.data.case_checks.check_cases`.
        read_image: reads a file of an image; see there.
        pictures: whether images and labels may be pictures such as PNG; the check reads NIfTI alone.

    Returns:
        All sections, also empty ones. Each item holds absolute paths `image` (a list if there are several) and `label`
        (optional in test), a unique `case` (the name of the image, with its folders if names repeat; a `case` of the
        datalist is ignored), and the other text fields of the datalist.

    Raises:
        InputError: there are no cases, the JSON is malformed, a path leads out of `dataset_dir`, a required section is
            empty, a file is listed twice, training shares a file or a patient with another section, `ignored_label` is
            a class, or the check fails.

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
    if ignored_label is not None and (type(ignored_label) is not int or ignored_label in range(num_classes or 0)):
        raise InputError(f"ignored_label is {ignored_label!r}; give a whole number that is none of the classes")
    file = root / datalist_file
    source = file if file.is_file() else root
    if file.is_file():
        sections = _from_json(file, root, images_per_case, optional_labels=optional_labels, pictures=pictures)
    else:
        sections = _from_folders(root, file, images_per_case)
    hold_out_fold(sections, fold, source)
    _refuse_empty(sections, required, source, need_labels=need_labels)
    overlap = parse_flag(allow_overlap, "allow_overlap")
    _refuse_repeats(sections, source, allow_overlap=overlap)
    items = [item for name in SECTIONS for item in sections[name]]
    for item, case in zip(items, unique_names([name_path(item["image"]) for item in items]), strict=True):
        item["case"] = case
    if ignored_label is not None:
        for item in (item for name in ignored_in for item in sections[name]):
            item["ignored_label"] = ignored_label
    if parse_flag(check, "check_data"):
        todo = [item for name in required for item in sections[name]]
        options = {"num_classes": num_classes, "label_sets": label_sets, "check_image": check_image}
        options["read_image"] = read_image
        check_cases(todo, allow_copies=overlap, **options)
    logger.info("loaded %s: %s", source, ", ".join(f"{len(items)} {name}" for name, items in sections.items()))
    return sections


class _Roots(NamedTuple):
    """The folder that the files of a datalist lie in, and which files may be images.

    Attributes:
        real: the folder, without symbolic links.
        given: the folder, as it was given.
        pictures: see `load_datalist`.
    """

    real: str
    given: str
    pictures: bool


def _refuse_empty(
    sections: Mapping[str, list[Item]], required: Sequence[str], source: Path, *, need_labels: bool
) -> None:
    for name in required:
        if not sections[name]:
            raise InputError(
                f'{source}: no {name} cases; list some under "{name}", or remove the datalist and put at '
                "least two cases into imagesTr and labelsTr, which are split 80/20"
            )
        processes = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1  # of torchrun
        if len(sections[name]) < processes:
            raise InputError(f"{source}: {len(sections[name])} {name} cases for {processes} processes; start fewer")
        bare = [f"{item['image']}: has no label" for item in sections[name] if need_labels and "label" not in item]
        raise_all(bare, f"{source}, {name}", "these cases cannot be scored; add labels, or evaluate another section")


def _show(value: Any) -> str:
    """Show a value of JSON in a message, containers by their type only."""
    return f"{value!r:.200}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _from_json(
    file: Path, root: Path, images_per_case: int, *, optional_labels: bool, pictures: bool
) -> dict[str, list[Item]]:
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, need an object with training and validation")
    sections: dict[str, list[Item]] = {name: [] for name in SECTIONS}
    problems = []
    roots = _Roots(str(root.resolve()), str(root), pictures)
    for name in SECTIONS:
        entries = content.get(name, [])
        if not isinstance(entries, list):
            problems.append(f"{name}: is {_show(entries)}, need a list")
            continue
        for index, entry in enumerate(entries):
            try:
                item = _parse_entry(entry, roots, images_per_case, label_optional=optional_labels or name == "test")
                sections[name].append(item)
            except InputError as error:
                problems.append(f"{name}[{index}]: {error}")
    raise_all(problems, file, "correct these entries")
    return sections


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is given twice, of which Python keeps the last."""
    if repeated := [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]:
        raise ValueError(f"key {repeated[0]!r:.200} twice in one object")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _parse_entry(entry: Any, roots: _Roots, images_per_case: int, *, label_optional: bool) -> Item:
    if isinstance(entry, str) and label_optional and images_per_case == 1:
        entry = {"image": entry}
    if not isinstance(entry, dict):
        raise InputError(f"is {_show(entry)}, need an object with image and label")
    item: Item = {key: value for key, value in entry.items() if isinstance(value, str) or key == "fold"}
    item.pop("ignored_label", None)
    item["image"] = _image_inside(entry.get("image"), roots, images_per_case)
    if not label_optional or entry.get("label") is not None:
        item["label"] = _path_inside(entry.get("label"), roots, key="label")
    if (patient := entry.get("patient")) is not None:
        item["patient"] = str(patient)
        if type(patient) not in (str, int) or not item["patient"].isprintable():
            raise InputError(f"patient is {_show(patient)}, need one name as text")
    return item


def _image_inside(value: Any, roots: _Roots, images_per_case: int) -> str | list[str]:
    if images_per_case == 1:
        return _path_inside(value, roots, key="image")
    if not isinstance(value, list) or len(value) != images_per_case:
        shown = f"a list of {len(value)}" if isinstance(value, list) else _show(value)
        raise InputError(f"image is {shown}, need a list of {images_per_case} paths")
    return [_path_inside(path, roots, key="image") for path in value]


def _path_inside(value: Any, roots: _Roots, *, key: str) -> str:
    """Join a path to the root and refuse one that leads out of it, but follow symbolic links, which users make.

    Args:
        value: from the datalist.
        roots: the folder.
        key: named in the messages.
    """
    # Not printable: NUL, which the file system refuses, and line breaks, which could fake log lines.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InputError(f"{key} is {_show(value)}, need one path as text")
    real_root, root, pictures = roots
    path = os.path.normpath(os.path.join(root, value))  # noqa: PTH118 (pathlib takes minutes for a million entries)
    if path.startswith(real_root + os.sep):
        path = root + path.removeprefix(real_root)
    if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
        raise InputError(f"{key} {_show(value)} is outside {root}; use a path inside it, or link the data into it")
    if not is_nifti(Path(path)) and not (pictures and is_picture(Path(path))):
        kinds = f".nii, .nii.gz or {', '.join(PICTURE_SUFFIXES)}" if pictures else ".nii or .nii.gz"
        raise InputError(f"{key} {_show(value)} is not a {kinds} file; convert it")
    return path


def _from_folders(root: Path, missing: Path, images_per_case: int) -> dict[str, list[Item]]:
    if images_per_case > 1:
        raise InputError(f"{missing}: no such datalist; images in several files need one, see the bundle's docs")
    if os.path.lexists(missing) or missing.name != DATALIST_FILE:
        raise InputError(f"{missing}: no such datalist, or not a file; correct datalist_file, or leave it out")
    if not (root / "imagesTr").is_dir() and not (root / "imagesTs").is_dir():
        raise InputError(
            f"{root}: has neither {missing.name or 'a datalist'} nor a folder imagesTr; set dataset_dir to a folder "
            "that has one of them; the bundle's docs say how to prepare a download"
        )
    logger.warning("%s: no such file, so the last fifth of imagesTr by name is validation", missing)
    problems: list[str] = []
    cases = pair_folders(root / "imagesTr", root / "labelsTr", problems)
    test = pair_folders(root / "imagesTs", root / "labelsTs", problems, label_optional=True)
    raise_all(problems, root, "add the missing files, or remove or rename these")
    n = max(0, len(cases) - max(1, len(cases) // 5))
    return {"training": cases[:n], "validation": cases[n:], "test": test}


def _refuse_repeats(sections: Mapping[str, list[Item]], source: Path, *, allow_overlap: bool) -> None:
    real_folder = cache(os.path.realpath)

    def real(path: str) -> str:  # os.path.realpath asks for each folder of each path
        folder, name = os.path.split(path)
        return os.path.realpath(path) if os.path.islink(path) else f"{real_folder(folder)}/{name}"  # noqa: PTH114

    images = {name: Counter(real(f) for item in items for f in image_files(item)) for name, items in sections.items()}
    labels = {name: Counter(real(i["label"]) for i in items if "label" in i) for name, items in sections.items()}
    both = set().union(*images.values()) & set().union(*labels.values())
    raise_all([f"{path}: as image and as label" for path in sorted(both)], source, "correct these entries")
    if allow_overlap:
        return
    problems = []
    for name in sections:
        problems += [f"{path}: {n} times in {name}" for path, n in (images[name] + labels[name]).items() if n > 1]
    patients = {name: {i["patient"] for i in sections[name] if {"patient", "label"} <= i.keys()} for name in SECTIONS}
    # Validation and test may share cases: neither trains the network. Test cases without a label measure nothing.
    for other in ("validation", "test"):
        shared = sorted(patients["training"] & patients[other])
        problems += [f"patient {patient}: in training and {other}" for patient in shared]
    for other in ("validation", "test"):
        files = [(images[name] | labels[name]).keys() for name in ("training", other)]
        problems += [f"{path}: in training and {other}" for path in sorted(files[0] & files[1])]
    fix = "training cases must not be used to measure it; list each file once, or set allow_overlap to true"
    raise_all(problems, source, fix)
