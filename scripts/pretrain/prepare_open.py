"""Convert open data sets of CT and MR to label maps of the 72 organs and a datalist.

`python -m scripts.prepare_open DATA_SET [DATA_SET ...] OUT` reads TotalSegmentator's CT and MR data sets (a folder per
subject with `ct.nii.gz` or `mri.nii.gz` and `segmentations`, and `meta.csv`), and folders with `image.nii.gz`, one
label map and a JSON file of its ids and names.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from scripts.cohort.journal import Case, Journal
from scripts.cohort.run import run_cohort
from scripts.common.errors import InputError
from scripts.common.failures import write_failures
from scripts.common.files import remove_leftovers, write_json
from scripts.common.fingerprint import file_state, fingerprint
from scripts.common.grids import describe_mismatch
from scripts.common.label_maps import MAX_CLASS_ID, as_label_array
from scripts.common.locks import FolderLock
from scripts.common.names import listed, printable
from scripts.common.organs import ORGANS, organ_ids
from scripts.data.plausibility import filled, intensity_kind, tissue_of
from scripts.io.nifti import StoredVolume, check_intensities, read_nifti
from scripts.io.organ_folder import read_organ_folder
from scripts.io.writing import header_for, write_label_map
from scripts.pretrain.contrasts import SINGLE, check_names
from scripts.pretrain.links import link
from scripts.pretrain.open_subjects import MASKS, Subject, find_subjects, label_of, with_splits
from scripts.pretrain.zero_shot import read_names

logger = logging.getLogger(__name__)

IGNORED = 255
UNLABELLED = ("background", "ignore")


def prepare_open(
    sources: Sequence[Path],
    out_dir: Path,
    *,
    unlabelled: str = "background",
    contrast: str = SINGLE,
    label: str = "label*",
    workers: int = -1,
) -> dict[str, str]:
    """Write `labels`, links to the images in `images`, and `dataset_0.json`; a run that was stopped goes on.

    Structures that are none of the 72 organs, or several of them, become 255, which the loss leaves out: a whole
    vertebra is neither background nor one of its two parts.

    Args:
        sources: see `scripts.pretrain.open_subjects.find_subjects`.
        out_dir: folder of the results, `failed.csv` and the journal.
        unlabelled: what voxels of the body become that no structure covers. TotalSegmentator labels no muscle and no
            fat, which VIBESegmentator does: with `background`, a training on both would be told both.
        contrast: channel of the images.
        label: pattern of the names of label files.
        workers: processes; -1 for one per core, 0 to run in this process.

    Returns:
        The reasons of failed cases by name.

    Raises:
        InputError: a setting or folder is refused, or `out_dir` is in use or cannot be written.
    """
    if unlabelled not in UNLABELLED:
        raise InputError(f"unlabelled is {unlabelled!r}: give one of {', '.join(UNLABELLED)}.")
    check_names([contrast], "--contrast")
    if out_dir.resolve() in [source.resolve() for source in sources]:
        raise InputError(f"{printable(out_dir)}: is one of the data sets, which are not changed; choose another OUT.")
    subjects, others = find_subjects(sources)
    if others:
        logger.warning("left out %d folders without an image: %s", len(others), listed(others))
    cases = [_case(subject, label) for subject in subjects]
    task = partial(prepare_subject, out_dir=out_dir.absolute(), unlabelled=unlabelled)
    with FolderLock(out_dir, setting="OUT"):
        for name in ("images", "labels"):
            remove_leftovers(out_dir / name)
        with Journal(out_dir / "journal.sqlite", settings=fingerprint(prepare_subject, unlabelled)) as journal:
            failures = run_cohort(
                task,
                cases,
                journal=journal,
                workers=workers,
                is_finished=lambda case: _label_path(out_dir, case["case"]).is_file(),
            )
            done = [
                json.loads(payload) for _, payload in journal.payloads([c for c in cases if c["case"] not in failures])
            ]
        write_failures(out_dir, failures)
        _write_datalist(out_dir, [s for s in subjects if s.case not in failures], contrast)
    _log(done, len(cases), out_dir)
    return failures


def prepare_subject(case: Mapping[str, str], *, out_dir: Path, unlabelled: str) -> bytes:
    """Write the label map of a subject, and a link to its image.

    Returns:
        JSON of the names that are ignored, and the number of voxels by what they became.

    Raises:
        InputError: the image or a label cannot be read, or they lie on different grids; or see `label_of`.
    """
    path, names = label_of(Path(case["folder"]), case["label"])
    image = read_nifti(case["image"], drop_axes=True)
    check_intensities(image, printable(case["image"]))
    volume, ignored = read_label(path, names)
    if mismatch := describe_mismatch(volume.grid, image.grid):
        raise InputError(f"{printable(path)}: does not lie on the grid of its image: {mismatch}; resample it.")
    labels = np.asarray(volume.stored)
    if unlabelled == "ignore":
        values = image.values()
        body = filled(tissue_of(values, is_ct=intensity_kind(values) == "HU"))
        labels = np.where(body & (labels == 0), np.uint8(IGNORED), labels)
    write_label_map(labels, header_for(labels, volume.affine), _label_path(out_dir, case["case"]))
    link(Path(case["image"]), out_dir / "images" / _image_name(case["case"], case["image"]))
    counts = {"ignored": int((labels == IGNORED).sum()), "labelled": int(((labels > 0) & (labels != IGNORED)).sum())}
    return json.dumps({"names": ignored, "organs": np.unique(labels).tolist(), **counts}).encode()


def read_label(path: Path, names: Path | None) -> tuple[StoredVolume, list[str]]:
    """Read the label of a subject as ids of the 72 organs.

    Args:
        path: folder of masks, or a label map.
        names: JSON file of the ids and names of the label map.

    Returns:
        The label map, and the names of what is ignored.

    Raises:
        InputError: see `read_organ_folder`, `read_nifti` and `read_names`; or none of the names is an organ's.
    """
    if names is None:
        ignored: list[str] = []

        def ids_of(found: Iterable[str], folder: Path) -> dict[str, int]:
            ids = known_ids(found, folder)
            ignored.extend(name for name in found if name not in ids)
            return ids

        return read_organ_folder(path, ids_of, ignore_id=IGNORED)[0], ignored
    own = read_names(names)
    ids = known_ids(own.values(), names)
    table = np.full(MAX_CLASS_ID + 1, IGNORED, dtype=np.uint8)
    table[[0, *own]] = [0, *(ids.get(name, IGNORED) for name in own.values())]
    volume = read_nifti(path, drop_axes=True)
    labels = as_label_array(volume.values(), name=printable(path))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > MAX_CLASS_ID:
        raise InputError(f"{printable(path)}: holds ids from {low} to {high}; give ids from 0 to {MAX_CLASS_ID}.")
    unknown = sorted(set(np.unique(labels).tolist()) - {0, *own})
    ignored = [name for name in own.values() if name not in ids] + [f"id {label}" for label in unknown]
    return StoredVolume(table[labels], volume.affine), ignored


def known_ids(names: Iterable[str], path: Path) -> dict[str, int]:
    """Return the ids of the names that are exactly one organ.

    Raises:
        InputError: none is.
    """
    found = {name: organ_ids(name) for name in names}
    ids = {name: parts[0] for name, parts in found.items() if len(parts) == 1}
    if not ids:
        some = next(iter(found), "")
        raise InputError(
            f"{printable(path)}: none of its {len(found)} names, such as {some!r}, is an organ's; correct them."
        )
    return ids


def _case(subject: Subject, label: str) -> Case:
    """Return a subject as `run_cohort` takes it; the state of its folder tells when a label has changed."""
    state = fingerprint(file_state(subject.folder), file_state(subject.folder / MASKS))
    own = {"folder": str(subject.folder), "label": label, "state": state}
    return {"case": subject.case, "image": str(subject.image), **own}


def _label_path(out_dir: Path, case: str) -> Path:
    return out_dir / "labels" / f"{case}.nii.gz"


def _image_name(case: str, image: str | Path) -> str:
    return f"{case}{'.nii.gz' if str(image).lower().endswith('.gz') else '.nii'}"


def _write_datalist(out_dir: Path, subjects: Sequence[Subject], contrast: str) -> None:
    """Write the datalist of the subjects that were prepared, or remove that of an earlier run if there are none."""
    path = out_dir / "dataset_0.json"
    if not subjects:
        path.unlink(missing_ok=True)
        return
    sections: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for subject in with_splits(subjects):
        image = f"images/{_image_name(subject.case, subject.image)}"
        item = {"image": image, "label": f"labels/{subject.case}.nii.gz", "contrast": contrast}
        sections[subject.split].append(item)
    write_json(path, {"name": "open data in the ids of the 72 organs", **sections})


def _log(done: Sequence[Mapping], total: int, out_dir: Path) -> None:
    ignored = Counter(name for facts in done for name in facts["names"])
    organs = {ORGANS[label] for facts in done for label in facts["organs"] if label in ORGANS}
    logger.info("prepared %d of %d cases with %d of the 72 organs: %s", len(done), total, len(organs), out_dir)
    if ignored:
        logger.warning("ignored (%d), for they are not one of the organs: %s", IGNORED, listed(sorted(ignored)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit code 2, failed cases with 1."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_open", description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="folders of subjects, or of one subject each")
    parser.add_argument("out", type=Path, help="folder for images, labels and dataset_0.json")
    what = "what the body becomes where nothing is labelled; ignore is right beside UK Biobank's labels"
    parser.add_argument("--unlabelled", default="background", metavar="|".join(UNLABELLED), help=what)
    parser.add_argument("--contrast", default=SINGLE, help=f"channel of the images (default: {SINGLE})")
    parser.add_argument("--label", default="label*", help="name of label files, with * (default: label*)")
    parser.add_argument("--workers", type=int, default=-1, help="processes; -1: one per core, 0: in this process")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {name: getattr(args, name) for name in ("unlabelled", "contrast", "label", "workers")}
    try:
        failures = prepare_open(args.sources, args.out, **options)
    except (InputError, OSError) as error:
        parser.exit(2, f"prepare_open: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "prepare_open: stopped; run again to resume\n")
    if failures:
        logger.error("%d cases failed: see %s", len(failures), args.out / "failed.csv")
    return 1 if failures else 0
