import re
import sys

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.inference.dicom_saver import DicomSaver
from tests.scripts.io.dicom_files import write_series
from tests.scripts.io.dicom_readers import rtstruct_masks, seg_labels
from tests.scripts.io.test_dicom_result import MORE, NAMES, some_labels

METADATA = {"name": "Bundle", "version": "1.2.3", "authors": "Its authors"}


def saver(folder, output_format, cases, **more):
    options = {"class_names": NAMES, "colors": MORE["colors"], "metadata": METADATA, **more}
    return DicomSaver(folder, output_format=output_format, cases=cases, **options)


def run(handler, series, labels):
    """Finish one case as an evaluator does."""

    def finish_case(engine, _):
        meta = {"filename_or_obj": str(series)}
        engine.state.batch = [{"case": "p1", "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta)}]
        pred = MetaTensor(torch.from_numpy(labels.array)[None], affine=torch.from_numpy(labels.affine))
        engine.state.output = [{"pred": pred}]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    engine = Engine(finish_case)
    engine.register_events(*IterationEvents)
    handler.attach(engine)
    engine.run([0])


@pytest.fixture
def ct(tmp_path):
    return write_series(tmp_path / "ct")


@pytest.mark.parametrize(
    ("output_format", "names"),
    [("nifti", []), ("dicomseg", ["p1_seg.dcm"]), ("rtstruct", ["p1_rtstruct.dcm"])],
)
def test_file_of_the_format_is_written_and_holds_the_label_map(tmp_path, ct, output_format, names):
    out, labels = tmp_path / "out", some_labels(ct)
    out.mkdir()
    run(saver(out, output_format, [{"image": str(ct)}]), ct, labels)
    assert [path.name for path in out.iterdir()] == names
    if output_format == "dicomseg":
        np.testing.assert_array_equal(seg_labels(out / names[0], labels.affine), labels.array)
    if output_format == "rtstruct":
        masks = rtstruct_masks(out / names[0], labels.grid)
        np.testing.assert_array_equal(masks["right kidney"], labels.array == 2)


@pytest.mark.parametrize("output_format", ["dicomseg", "rtstruct"])
def test_nifti_input_is_refused_at_the_start(tmp_path, ct, output_format):
    cases = [{"image": str(ct)}, {"image": "a.nii.gz"}, {"image": "b.nii"}]
    message = f"output_format {output_format} needs DICOM series, but a.nii.gz and 1 more are not; give series, or set"
    with pytest.raises(InputError, match=message):
        saver(tmp_path, output_format, cases)
    saver(tmp_path, "nifti", cases)


def test_other_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="output_format is 'stl': give one of nifti, dicomseg, rtstruct"):
        saver(tmp_path, "stl", [])


def test_class_without_a_code_is_refused_at_the_start(tmp_path, ct):
    with pytest.raises(InputError, match="right wing: has no SNOMED CT code"):
        saver(tmp_path, "dicomseg", [{"image": str(ct)}], class_names={1: "right wing"})


def test_highdicom_is_needed_for_dicom_seg_alone(tmp_path, ct, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=re.escape("install it with: pip install highdicom")):
        saver(tmp_path, "dicomseg", [{"image": str(ct)}])
    run(saver(tmp_path, "rtstruct", [{"image": str(ct)}]), ct, some_labels(ct))
