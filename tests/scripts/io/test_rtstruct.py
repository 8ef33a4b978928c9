import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from skimage.draw import polygon2mask

from scripts.common.grids import GridArray
from scripts.io.dicom_result import dicom_result, save_object
from scripts.io.rtstruct import make_rtstruct, plane_contours
from tests.scripts.io.dicom_files import write_series
from tests.scripts.io.dicom_readers import aligned, rtstruct_masks
from tests.scripts.io.test_dicom_result import MORE, NAMES, some_labels, some_result
from tests.scripts.io.test_dicom_seg_writing import AXES, TILT


def written(folder, result=None):
    path = folder.with_suffix(".dcm")
    save_object(make_rtstruct(result or some_result(folder)), path)
    return path


@pytest.mark.parametrize("tilt", [Rotation.identity(), TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_contours_of_any_acquisition_give_the_same_voxels(tmp_path, axes, tilt):
    """Of random labels, full of holes, islands and diagonal neighbours."""
    folder = write_series(tmp_path / "series", axes=tilt.apply(axes))
    labels = some_labels(folder)
    masks = rtstruct_masks(written(folder), labels.grid)
    for class_id, name in NAMES.items():
        np.testing.assert_array_equal(masks[name], labels.array == class_id, name)


def nested_rings():
    """A disc with two holes, an island in one of them that has a hole itself, and a voxel alone."""
    x, y = np.mgrid[:40, :30]
    mask = np.hypot(x - 18, y - 15) < 14
    for centre, radius, value in (((13, 15), 6, 0), ((13, 15), 4, 1), ((13, 15), 1.5, 0), ((26, 15), 3, 0)):
        mask[np.hypot(x - centre[0], y - centre[1]) < radius] = value
    mask[38, 28] = True
    return mask


def test_holes_and_islands_are_kept_whether_readers_unite_or_toggle_contours():
    mask = nested_rings()
    contours = plane_contours(mask)
    assert len(contours) == 3, "disc, island and voxel: each hole belongs to the contour around it"
    filled = [polygon2mask(mask.shape, contour) for contour in contours]
    np.testing.assert_array_equal(np.logical_or.reduce(filled), mask)
    np.testing.assert_array_equal(np.logical_xor.reduce(filled), mask)


def test_a_voxel_is_a_contour_of_four_points_around_its_centre():
    mask = np.zeros((3, 4), dtype=bool)
    mask[1, 2] = True
    (contour,) = plane_contours(mask)
    assert sorted(map(tuple, contour)) == [(0.5, 2), (1, 1.5), (1, 2.5), (1.5, 2)]


def test_straight_edges_have_points_at_their_ends_alone():
    (contour,) = plane_contours(np.ones((50, 60), dtype=bool))
    assert len(contour) == 8


def test_region_at_the_edge_of_the_image_is_closed():
    mask = np.zeros((5, 5), dtype=bool)
    mask[0, :] = True
    np.testing.assert_array_equal(polygon2mask(mask.shape, plane_contours(mask)[0]), mask)


def smooth_result(folder):
    """Organs with smooth borders and holes, one of which is a shell around another."""
    labels = some_labels(folder)
    field = gaussian_filter(np.random.default_rng(0).normal(size=labels.array.shape), (6, 6, 1))
    ids = np.digitize(field, np.quantile(field, [0.5, 0.7, 0.9])).astype(np.uint8)
    return dicom_result(GridArray(ids, labels.affine), folder, **MORE)


def test_plastimatch_reads_the_same_voxels(tmp_path):
    """A reader in C++ of the radiotherapy community."""
    folder = write_series(tmp_path / "series", size=(70, 60))
    result = smooth_result(folder)
    program = Path(sys.executable).with_name("plastimatch")
    options = ["--input", written(folder, result), "--referenced-ct", folder, "--output-prefix", tmp_path / "masks"]
    subprocess.run([program, "convert", *options, "--prefix-format", "nii.gz"], check=True, capture_output=True)
    for class_id, name in NAMES.items():
        mask = aligned(nib.load(tmp_path / "masks" / f"{name}.nii.gz"), some_labels(folder).affine) > 0
        np.testing.assert_array_equal(mask, result.labels == class_id)


def test_organ_without_voxels_has_a_region_without_contours(tmp_path):
    ds = pydicom.dcmread(written(write_series(tmp_path / "series")))
    assert [roi.ROIName for roi in ds.StructureSetROISequence] == list(NAMES.values())
    assert ["ContourSequence" in roi for roi in ds.ROIContourSequence] == [True, True, False]


def test_references_codes_and_algorithm(tmp_path):
    ds = pydicom.dcmread(written(write_series(tmp_path / "series")))
    frame = ds.ReferencedFrameOfReferenceSequence[0]
    study = frame.RTReferencedStudySequence[0]
    series = study.RTReferencedSeriesSequence[0]
    uids = [f"1.2.3.{n + 1}" for n in range(6)]
    assert (frame.FrameOfReferenceUID, study.ReferencedSOPInstanceUID) == ("1.2.4", "1.2.5")
    assert (series.SeriesInstanceUID, ds.Modality) == ("1.2.3", "RTSTRUCT")
    assert [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence] == uids
    contours = ds.ROIContourSequence[0].ContourSequence
    assert {contour.ContourImageSequence[0].ReferencedSOPInstanceUID for contour in contours} == set(uids)
    kidney = ds.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    assert (kidney.CodeValue, kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Right")
    algorithm = ds.StructureSetROISequence[0].ROIDerivationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("Bundle", "1.2.3")
    assert list(ds.ROIContourSequence[1].ROIDisplayColor) == [34, 102, 136]


def test_contours_of_more_than_64_kilobytes_are_stored(tmp_path):
    """Which an explicit transfer syntax cannot."""
    folder = write_series(tmp_path / "series", size=(200, 200), n=2)
    labels = some_labels(folder, ids=(0, 1, 1, 1, 1, 1))
    path = written(folder, dicom_result(labels, folder, **MORE))
    contours = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert max(len(contour.ContourData) for contour in contours) > 65536 / 6
    np.testing.assert_array_equal(rtstruct_masks(path, labels.grid)["liver"], labels.array == 1)


def test_same_input_gives_the_same_bytes(tmp_path):
    folder = write_series(tmp_path / "series")
    assert written(folder).read_bytes() == written(folder).read_bytes()
