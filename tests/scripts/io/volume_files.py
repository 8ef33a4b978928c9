"""Writes small volumes, sound ones and damaged ones."""

import gzip
import zlib

import nibabel as nib
import numpy as np

SHAPE = (5, 6, 7)
OBLIQUE = np.array([[0.7, 0.1, 0.0, -30.0], [-0.1, 0.7, 0.2, 12.5], [0.0, -0.1, 3.0, 400.0], [0, 0, 0, 1.0]])


def write_volume(path, *, value=0, dtype=np.int16, shape=SHAPE, affine=OBLIQUE):
    """Write a volume of one value."""
    return write_array(path, np.full(shape, value, dtype), affine=affine)


def write_array(path, array, *, affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_image(path, *, affine=OBLIQUE, shape=SHAPE):
    """Write a volume of random intensities, int16, others for another file name."""
    array = np.random.default_rng(zlib.crc32(path.name.encode())).integers(-1000, 1000, shape)
    return write_array(path, array.astype(np.int16), affine=affine)


def write_case(root, *, image="imagesTr/img0001.nii.gz", label="labelsTr/label0001.nii.gz"):
    """Write an image and its label; return the item of a datalist."""
    write_image(root / image)
    write_volume(root / label, value=1, dtype=np.uint8)
    return {"image": str(root / image), "label": str(root / label)}


def with_values(*values):
    """Make a function that writes a volume of zeros that begins with some values."""

    def write(path):
        array = np.zeros(SHAPE, np.float32)
        array.flat[: len(values)] = values
        write_array(path, array)

    return write


def with_sform(affine):
    """Make a function that writes a volume with any affine, also one that nibabel refuses as a qform."""

    def write(path):
        header = nib.Nifti1Header()
        header.set_sform(affine, code=1)
        array = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
        nib.save(nib.Nifti1Image(array, None, header), path)

    return write


def truncate(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


def flip_voxel_byte(path):
    """Change one voxel in an uncompressed gzip block, which only the checksum tells."""
    packed = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    packed[-20] ^= 1
    path.write_bytes(packed)


def break_checksum(path):
    """Change the checksum at the end of a gzip file, whose content stays right."""
    packed = bytearray(path.read_bytes())
    packed[-8] ^= 1
    path.write_bytes(packed)


SINGULAR = np.eye(4)
SINGULAR[:3, 1] = SINGULAR[:3, 0]

BAD_FILES = {
    "no such file": lambda path: path.unlink(),
    "cannot be read whole (0 bytes)": lambda path: path.write_bytes(b""),
    "cannot be read whole (Not a gzipped file": lambda path: path.write_bytes(b"<html>login</html>"),
    "cannot be read whole (not a NIfTI file)": lambda path: path.write_bytes(gzip.compress(b"x" * 999)),
    "cannot be read whole (Compressed file ended before": lambda path: truncate(path, -30),
    "cannot be read whole (CRC check failed": flip_voxel_byte,
    "cannot be read whole (CRC check failed 0x": break_checksum,
    "has shape (5, 6, 7, 2), need (X, Y, Z)": lambda path: write_volume(path, shape=(*SHAPE, 2)),
    "has shape (5, 6), need (X, Y, Z)": lambda path: write_volume(path, shape=(5, 6)),
    "has values of type complex64, need integers or floats": lambda path: write_volume(path, dtype="c8"),
    "voxel spacing (1.0, 1.0, 0.0) mm is outside 0.01..50.0 mm": with_sform(np.diag([1.0, 1, 0, 1])),
    "voxel spacing (60.0, 1.0, 1.0) mm is outside 0.01..50.0 mm": with_sform(np.diag([60.0, 1, 1, 1])),
    "voxel spacing (1.0, 0.001, 1.0) mm is outside 0.01..50.0 mm": with_sform(np.diag([1, 0.001, 1, 1])),
    "its affine holds NaN or infinity": with_sform(np.diag([1, np.nan, 1, 1])),
    "its affine is singular, two axes are parallel": with_sform(SINGULAR),
}
"""Start of the message to what makes a sound `.nii.gz` file bad, be it an image or a label."""

BAD_IMAGES = {
    "is constant, every voxel is -7; this is not an image": lambda path: write_volume(path, value=-7),
    "holds NaN or infinite voxels": with_values(1, np.nan),
    "holds NaN or infinite voxels;": with_values(1, np.inf),
    "holds NaN or infinite voxels; export": with_values(1, -np.inf),
}
"""The same for images; label maps may be constant."""
