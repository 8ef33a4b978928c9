"""Changes stored headers of NIfTI files in ways that nibabel would correct or ignore."""

import gzip

import nibabel as nib
import numpy as np


def editing(**fields):
    """Make a function that changes fields of the header of a `.nii` or `.nii.gz` file.

    Args:
        fields: field to value; `pixdim_3` is the third entry of an array.
    """

    def change(path):
        raw = bytearray(unpacked(path))
        kind = nib.Nifti1Header if raw[:4] == b"\x5c\x01\x00\x00" else nib.Nifti2Header
        header = np.frombuffer(raw, dtype=kind.template_dtype, count=1).copy()[0]
        for field, value in fields.items():
            name, _, entry = field.rpartition("_") if field[-1].isdigit() else (field, "", "")
            if name != field:
                header[name][int(entry)] = value
            else:
                header[name] = value
        raw[: kind.sizeof_hdr] = header.tobytes()
        pack(path, raw)

    return change


def unpacked(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def pack(path, raw):
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))


def add_bytes(path, more):
    """Add bytes after the last voxel."""
    pack(path, unpacked(path) + more)


QFORM = {"sform_code": 0, "qform_code": 1}
NO_CODES = {"sform_code": 0, "qform_code": 0}
ZERO_SFORM = {"srow_x": 0, "srow_y": 0, "srow_z": 0}

BAD_HEADERS = {
    "sform zero": (editing(**ZERO_SFORM), "voxel spacing (0.0, 0.0, 0.0) mm is outside 0.01..50.0 mm"),
    "sform NaN": (editing(srow_y_1=np.nan), "its affine holds NaN or infinity"),
    "sform far away": (editing(srow_x_3=1e30), "its first voxel is 1e+27 m from the origin; correct the header."),
    "cm for mm": (
        editing(srow_x_0=48, srow_y_1=48, srow_z_2=48, dim_1=32, dim_2=32, dim_3=32),
        "its field of view of 1536 x 1536 x 1536 mm is 3.62 m3, a patient's is at most 3; correct",
    ),
    "qform NaN": (editing(**QFORM, quatern_b=np.nan), "its affine holds NaN or infinity"),
    "qform offset NaN": (editing(**QFORM, qoffset_x=np.nan), "its affine holds NaN or infinity"),
    "quaternion": (
        editing(**QFORM, quatern_b=1, quatern_c=1),
        "its quaternion is longer than 1; correct the header.",
    ),
    "pixdim 0": (editing(**QFORM, pixdim_3=0), "mm is not above 0; correct the header."),
    "pixdim negative": (editing(**QFORM, pixdim_1=-1), "mm is not above 0"),
    "pixdim NaN": (editing(**QFORM, pixdim_2=np.nan), "mm is not above 0"),
    "pixdim 0 without codes": (editing(**NO_CODES, pixdim_1=0), "mm is not above 0"),
    "qfac": (editing(**QFORM, pixdim_0=-2), "pixdim[0] is -2, need 1 or -1; correct the header."),
    "sform code": (editing(sform_code=99), "sform_code is 99 and qform_code 0, need 0 to 5; correct the header."),
    "qform code": (editing(sform_code=0, qform_code=-1), "sform_code is 0 and qform_code -1, need 0 to 5"),
    "metres": (editing(xyzt_units=1), "its unit of length is not mm; correct the header."),
    "microns": (editing(xyzt_units=3 + 8), "its unit of length is not mm"),
    "slope inf": (editing(scl_slope=np.inf), "scl_slope is inf and scl_inter 0; correct the header."),
    "inter NaN": (editing(scl_slope=1, scl_inter=np.nan), "scl_slope is 1 and scl_inter nan"),
    "offset 0": (editing(vox_offset=0), "vox_offset is 0, need 352 or a little more; correct the header."),
    "offset inside of the header": (editing(vox_offset=348), "vox_offset is 348"),
    "offset NaN": (editing(vox_offset=np.nan), "vox_offset is nan"),
    "offset far": (editing(vox_offset=1e12), "vox_offset is 1e+12"),
    "too few voxels": (editing(dim_3=6), "cannot be read whole (it goes on after the last voxel that its header"),
    "another type": (editing(datatype=2), "cannot be read whole (it goes on after the last voxel that its header"),
    "unknown type": (editing(datatype=77), "cannot be read whole (data code 77 not recognized)"),
    "colours": (editing(datatype=128, bitpix=24), "has values of type [('R', 'u1'), ('G', 'u1'), ('B', 'u1')], need"),
    "8 GB": (
        editing(dim_1=2000, dim_2=2000, dim_3=1000),
        "cannot be read whole (its header announces 8000000352",
    ),
    "dimensions": (editing(dim_0=0), "has shape (0,), need (X, Y, Z)"),
    "negative size": (editing(dim_2=-6), "has shape (5, -6, 7), need (X, Y, Z)"),
    "trailing bytes": (lambda path: add_bytes(path, b"more"), "it goes on after the last voxel"),
    "much padding": (lambda path: add_bytes(path, bytes(3 << 20)), "it goes on after the last voxel"),
}
"""What makes a sound `.nii.gz` file of int16, sform and no qform unusable, and text of the message."""

GUESSED_HEADERS = {
    "no orientation": (editing(**NO_CODES), "stores no orientation, so left and right are unknown"),
    "mirrored qform": (
        editing(qform_code=1, pixdim_0=-1),
        "sform and qform contradict each other about left and right; the sform is used",
    ),
    "pixdim 0": (
        editing(pixdim_1=0),
        "sform and pixdim contradict each other about the voxel spacing; the",
    ),
    "pixdim of another grid": (editing(pixdim_3=5), "sform and pixdim contradict each other"),
    "slope NaN": (editing(scl_slope=np.nan), "scl_slope is NaN; the intensities are taken as they are stored"),
}
"""What makes it usable with a warning."""
