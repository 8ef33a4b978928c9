"""Operators of the MONAI Deploy App SDK with a packed bundle, from a DICOM series to a label map, on the CPU."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from tests.clients.bundles import own_run
from tests.clients.programs import run

APP = Path(__file__).parent / "drivers" / "deploy_app.py"


@pytest.fixture
def identified(series):
    """The series with the identifiers that the SDK needs and that were emptied, without compression."""
    study, volume = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["series"])
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        header.decompress()
        header.StudyInstanceUID, header.SeriesInstanceUID = study, volume
        header.SeriesNumber, header.AcquisitionNumber = 1, 1
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        header.save_as(path)
    return series


def test_series_gets_the_label_map_of_the_bundle(deploy_python, packed, identified, tmp_path):
    bundle = packed / "swin_bob_btcv"
    expected = own_run(bundle, identified, tmp_path / "own")
    result = tmp_path / "result.npz"
    output = run(deploy_python, APP, bundle, identified, result, cwd=tmp_path)
    assert result.is_file(), output
    content = np.load(result)
    theirs, ours = content["label_map"].transpose(2, 1, 0), np.asarray(expected.dataobj)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(content["affine"], expected.affine, atol=1e-4)
    assert len(np.unique(ours)) > 2
    assert int((theirs != ours).sum()) == 0, "voxels differ"
