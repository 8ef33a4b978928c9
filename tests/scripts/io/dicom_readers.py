"""Reads DICOM SEG and RTSTRUCT by other programs' code than that which wrote them."""

import highdicom
import nibabel as nib
import numpy as np
import pydicom
from skimage.draw import polygon2mask

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def aligned(image, affine):
    """Return the voxels of an image in the axis order of an affine, and check that it is the same grid."""
    own, wanted = (nib.io_orientation(matrix) for matrix in (image.affine, affine))
    image = image.as_reoriented(nib.orientations.ornt_transform(own, wanted))
    np.testing.assert_allclose(image.affine, affine, atol=1e-3)
    return np.asarray(image.dataobj)


def seg_labels(path, affine):
    """Read a SEG as a label map on a grid, its segment numbers as class ids."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    return aligned(nib.Nifti1Image(volume.array.astype(np.uint8), LPS_TO_RAS @ volume.affine), affine)


def rtstruct_masks(path, grid):
    """Rasterize the contours of each ROI by its voxels' centres; returns ROI name to mask."""
    ds = pydicom.dcmread(path)
    names = {roi.ROINumber: roi.ROIName for roi in ds.StructureSetROISequence}
    to_voxel = np.linalg.inv(LPS_TO_RAS @ grid.affine)
    masks = {name: np.zeros(grid.shape, dtype=bool) for name in names.values()}
    for roi in ds.ROIContourSequence:
        for contour in roi.get("ContourSequence", ()):
            points = nib.affines.apply_affine(to_voxel, np.reshape(contour.ContourData, (-1, 3)).astype(float))
            planes = np.unique(points[:, 2].round(2))
            assert len(planes) == 1, "a contour leaves its slice"
            assert planes[0] == round(planes[0]), "a contour lies between slices"
            mask = polygon2mask(grid.shape[:2], points[:, :2])
            masks[names[roi.ReferencedROINumber]][..., int(planes[0])] ^= mask
    return masks
