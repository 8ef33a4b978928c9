"""DICOM objects beside the NIfTI label maps of an evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.names import printable
from scripts.common.organs import snomed_codes
from scripts.inference.case_handler import case_name, decollated, label_array, source_path
from scripts.io.dicom_result import RGB, dicom_result, save_object
from scripts.io.dicom_seg_writing import import_highdicom, make_seg
from scripts.io.rtstruct import make_rtstruct

FORMATS = {"nifti": None, "dicomseg": ("seg", make_seg), "rtstruct": ("rtstruct", make_rtstruct)}


class DicomSaver:
    """Write `<case>_seg.dcm` or `<case>_rtstruct.dcm` for each case of an evaluator; with `nifti`, nothing.

    What fails here fails the case; its NIfTI label map is written before.

    Args:
        output_dir: folder of the files.
        output_format: `nifti`, `dicomseg` or `rtstruct`.
        cases: the cases, each `{"image": path}`; other formats than `nifti` need folders of DICOM series.
        class_names: class id from 1 to organ.
        colors: class id to colour.
        metadata: of the bundle; its name, version and authors are named as the software.

    Shape:
        Label maps: (1, X, Y, Z) MetaTensors on the grid of the series.

    Raises:
        InputError: when it is made, if the format is another, a case is no DICOM series, highdicom is missing for
            `dicomseg`, or a class has no SNOMED CT code.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        output_format: str,
        cases: Sequence[Mapping[str, Any]],
        class_names: Mapping[int, str],
        colors: Mapping[int, RGB],
        metadata: Mapping[str, Any],
    ) -> None:
        if output_format not in FORMATS:
            raise InputError(f"output_format is {output_format!r}: give one of {', '.join(FORMATS)}.")
        self.output_dir, self.format = Path(output_dir), FORMATS[output_format]
        self.class_names, self.colors = class_names, colors
        self.software = tuple(str(metadata.get(key, "")) for key in ("name", "version", "authors"))
        if self.format:
            _require_series(cases, output_format)
            for name in class_names.values():
                snomed_codes(name)
        if output_format == "dicomseg":
            import_highdicom()

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI evaluator with `decollate=True`."""
        if self.format:
            engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the objects of one iteration."""
        suffix, make = self.format
        for item, output in decollated(engine):
            case = case_name(item)
            result = dicom_result(
                label_array(output, "pred", case=case),
                Path(source_path(item)),
                class_names=self.class_names,
                colors=self.colors,
                software=self.software,
            )
            save_object(make(result), self.output_dir / f"{case}_{suffix}.dcm")


def _require_series(cases: Sequence[Mapping[str, Any]], output_format: str) -> None:
    """Refuse cases that are no folders."""
    others = [case["image"] for case in cases if not Path(case["image"]).is_dir()]
    if others:
        more = f" and {len(others) - 1} more are" if len(others) > 1 else " is"
        raise InputError(
            f"output_format {output_format} needs DICOM series, but {printable(others[0])}{more} not; give series, or "
            "set output_format to nifti."
        )
