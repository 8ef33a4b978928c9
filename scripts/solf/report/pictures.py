"""The pictures of the labels to review: each case is read once, for all its labels."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.common.errors import InputError
from scripts.common.progress import progress_bar
from scripts.solf.report.crops import CropFolder
from scripts.solf.report.folder import write_data
from scripts.solf.report.slices import LabelMap, Picture, cut_label

logger = logging.getLogger(__name__)


class PictureWriter:
    """Writes `data/slices-<n>.js` for labels, and crops of the rejected ones if wanted.

    Args:
        folder: the report's folder.
        organs: label id to name.
        sources: case to the file of its label map.
        images: case to its image, for those that have one.
        load: reads a label map as a MetaTensor (1, I, J, K).
        crops: where crops are written; None for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        organs: Mapping[int, str],
        sources: Mapping[str, str],
        images: Mapping[str, str],
        load: Callable[[str], Any],
        crops: CropFolder | None,
    ) -> None:
        self.folder, self.organs, self.sources, self.images = folder, organs, sources, images
        self.load, self.crops = load, crops
        self._written = 0

    def write(
        self, items: pd.DataFrame, ordinary: Mapping[int, str], rejected: Mapping[str, Collection[int]]
    ) -> dict[tuple[str, int], dict[str, str]]:
        """Write the labels to review and the ordinary organs beside them.

        Args:
            items: `case`, `label` and `decision` of the labels to review.
            ordinary: label id to the case with the most ordinary organ.
            rejected: case to the ids of its rejected labels.

        Returns:
            (case, label) to `file`, the name of its data, or `why` there is none; and `without_image` if an image
            could not be read.
        """
        wanted: dict[str, dict[int, bool]] = defaultdict(dict)
        for label in items["label"].unique():
            if label in ordinary:
                wanted[ordinary[label]][int(label)] = False
        for case, label, decision in zip(items["case"], items["label"], items["decision"], strict=True):
            wanted[case][int(label)] = decision == "reject"
        found: dict[tuple[str, int], dict[str, str]] = {}
        with progress_bar(total=len(wanted), desc="pictures", unit="case", disable=not wanted) as bar:
            for case in sorted(wanted):
                found |= self._write_case(case, wanted[case], rejected.get(case, ()))
                bar.update()
        if self.crops:
            kept = f"; {self.crops.kept} that were there already are left as they are" if self.crops.kept else ""
            logger.info("wrote %d crops to %s%s", self.crops.written, self.crops.folder, kept)
        return found

    def _write_case(
        self, case: str, wanted: Mapping[int, bool], rejected: Collection[int]
    ) -> dict[tuple[str, int], dict[str, str]]:
        source = self.sources.get(case, "")
        try:
            if not source:
                raise InputError("the path of its label map is unknown")
            volume = self.load(source)
        except InputError as error:
            return {(case, label): {"why": _reason(error, source)} for label in wanted}
        affine = np.asarray(volume.affine, dtype=np.float64)
        label_map = LabelMap(volume[0].numpy(), affine, self.organs, rejected)
        picture, note = self._picture(case)
        found = {}
        for label, is_crop in wanted.items():
            try:
                data = cut_label(label_map, label, picture)
            except InputError as error:
                found[case, label] = {"why": _reason(error, source)}
                continue
            found[case, label] = {"file": f"slices-{self._written:05d}", **note}
            write_data(self.folder, found[case, label]["file"], data)
            self._written += 1
            if self.crops and is_crop:
                self.crops.write(case, label, label_map.labels, affine, image=picture and picture.volume)
        return found

    def _picture(self, case: str) -> tuple[Picture | None, dict[str, str]]:
        """Return the image of a case, or a note why it is not shown."""
        if not self.images:
            return None, {}
        try:
            if case not in self.images:
                raise InputError("no image has the name of this case")
            return Picture.read(self.images[case]), {}
        except InputError as error:
            return None, {"without_image": _reason(error, self.images.get(case, ""))}


def _reason(error: InputError, source: str) -> str:
    """Return a message without the folder of its file and without a full stop, which the page adds."""
    why = str(error).removeprefix(f"{source}: ").rstrip(".")
    return f"{Path(source).name}: {why}" if source else why
