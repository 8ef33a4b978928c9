"""Writes small DICOM series, sound ones and damaged ones, and ultrasound."""

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

SHAPE = (10, 8, 6)
"""Columns, rows, slices."""
SPACING_MM = (1.5, 2.0, 3.0)


OBLIQUE = ((1, 0, 0), (0, 0.8, 0.6))
"""Directions of rows and columns."""


def write_series(folder, *, n=SHAPE[2], size=SHAPE[:2], axes=OBLIQUE, **elements):
    """Write a CT series of random HU whose InstanceNumbers run against its positions."""
    folder.mkdir(parents=True, exist_ok=True)
    step_mm = np.cross(*axes) * SPACING_MM[2]
    for index, hu in enumerate(np.random.default_rng(0).integers(-1000, 1000, (n, *size[::-1]))):
        header = _header()
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{index + 1}"
        header.InstanceNumber = n - index
        header.ImagePositionPatient = [round(value, 9) for value in np.array([-5.0, 7.0, 100.0]) + index * step_mm]
        header.ImageOrientationPatient = [round(value, 12) for axis in axes for value in axis]
        header.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
        header.Columns, header.Rows = size
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        header.RescaleSlope, header.RescaleIntercept = 1, -24
        header.PixelData = (hu + 24).astype("<i2").tobytes()
        for name, value in elements.items():
            setattr(header, name, value)
        header.save_as(folder / f"{n - index:03d}.dcm", enforce_file_format=True)
    return folder


def _header():
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.SeriesInstanceUID, header.FrameOfReferenceUID, header.StudyInstanceUID = "1.2.3", "1.2.4", "1.2.5"
    header.Modality, header.PhotometricInterpretation, header.SamplesPerPixel = "CT", "MONOCHROME2", 1
    return header


def edit(path, **values):
    """Set elements of a file; None deletes one."""
    header = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(header, name, value) if value is not None else delattr(header, name)
    header.save_as(path)


def editing(which=2, **values):
    """Make a function that edits one slice of a folder; all of them if `which` is None."""

    def change(folder):
        files = sorted(folder.iterdir())
        for path in files if which is None else [files[which]]:
            edit(path, **values)

    return change


def _as(syntax, folder):
    """Declare a slice to be stored in another transfer syntax."""
    path = folder / "003.dcm"
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        header.PixelData = pydicom.encaps.encapsulate([header.PixelData])
        header["PixelData"].VR = "OB"
    header.save_as(path)


def _shift(folder):
    position = [float(value) for value in pydicom.dcmread(folder / "003.dcm").ImagePositionPatient]
    edit(folder / "003.dcm", ImagePositionPatient=[position[0] + 40, *position[1:]])


def _cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


def _link(path):
    path.unlink()
    path.symlink_to("nothing.dcm")


BAD_SERIES = {
    "missing": (
        lambda f: (f / "003.dcm").unlink(),
        "bad: slices 004.dcm and 002.dcm are 6.00 mm apart, others 3.00",
    ),
    "duplicate": (
        lambda f: (f / "x").write_bytes((f / "003.dcm").read_bytes()),
        "bad: slices 003.dcm and x are 0.00 mm apart, others 3.00 mm: slices are missing, duplicated or shifted",
    ),
    "shifted": (_shift, "bad: slices 004.dcm and 003.dcm are 40.11 mm apart, others 3.00 mm"),
    "two phases": (
        lambda f: [(f / f"b{p.name}").write_bytes(p.read_bytes()) for p in list(f.iterdir())],
        "others 0.00 mm: slices are missing, duplicated or shifted",
    ),
    "two series": (
        editing(SeriesInstanceUID="1.9"),
        "bad: holds 2 DICOM series by SeriesInstanceUID and FrameOfReferenceUID: 5 files such as 001.dcm, 1 files",
    ),
    "two frames of reference": (editing(FrameOfReferenceUID="1.9"), "bad: holds 2 DICOM series"),
    "orientation": (
        editing(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "003.dcm: its ImageOrientationPatient is [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], that of the other slices 1, 0, 0",
    ),
    "no unit vectors": (editing(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "not two perpendicular unit vectors"),
    "five cosines": (editing(ImageOrientationPatient=[1, 0, 0, 0, 1]), "need 6 numbers"),
    "NaN position": (editing(ImagePositionPatient=["nan", 0, 0]), "003.dcm: "),
    "rows": (editing(Rows=4), "003.dcm: its Rows is 4, that of the other slices 8; remove or correct it."),
    "columns": (editing(Columns=5), "003.dcm: its Columns is 5, that of the other slices 10"),
    "spacing": (
        editing(PixelSpacing=[2, 1.6]),
        "003.dcm: its PixelSpacing is [2.0, 1.6], that of the other slices 2",
    ),
    "spacing zero": (editing(None, PixelSpacing=[0, 1.5]), "bad: voxel spacing (1.5, 0.0, 3.0) mm is outside"),
    "no spacing": (editing(PixelSpacing=None), "003.dcm: has no PixelSpacing; give a CT or MR series"),
    "no position": (editing(ImagePositionPatient=None), "003.dcm: has no ImagePositionPatient; give a CT or MR series"),
    "no rows": (editing(None, Rows=None), "001.dcm: has no Rows"),
    "no slope": (editing(RescaleSlope=None), "003.dcm: has no RescaleSlope, unlike other slices"),
    "slope zero": (editing(RescaleSlope=0), "003.dcm: its RescaleSlope or RescaleIntercept is invalid"),
    "no intercept": (editing(RescaleIntercept=None), "003.dcm: has no RescaleIntercept, so HU are unknown"),
    "no pixels": (editing(PixelData=None), "003.dcm: its pixels cannot be decoded ("),
    "few pixels": (editing(PixelData=bytes(20)), "003.dcm: its pixels cannot be decoded ("),
    "huge": (editing(None, Rows=60000, Columns=60000), "bad: "),
    "frames": (
        editing(NumberOfFrames=4),
        "003.dcm: holds 4 frames, need one slice per file; convert the series",
    ),
    "colour": (
        editing(PhotometricInterpretation="RGB", SamplesPerPixel=3),
        "003.dcm: has the PhotometricInterpretation RGB, need MONOCHROME2",
    ),
    "inverted": (editing(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1, need MONOCHROME2"),
    "three samples": (editing(SamplesPerPixel=3, PlanarConfiguration=0), "003.dcm: its pixels cannot be decoded ("),
    "no decoder": (lambda f: _as(JPEGLSLossless, f), "003.dcm: its pixels cannot be decoded ("),
    "deflated": (
        lambda f: _as(DeflatedExplicitVRLittleEndian, f),
        "003.dcm: cannot be read (it is deflated as a whole)",
    ),
    "truncated": (lambda f: _cut(f / "003.dcm", -30), "003.dcm: its pixels cannot be decoded ("),
    "truncated header": (lambda f: _cut(f / "003.dcm", 400), "003.dcm: "),
    "empty": (lambda f: _cut(f / "001.dcm", 0), "001.dcm: cannot be read (it is empty, a broken link or no file)"),
    "text": (lambda f: (f / "001.dcm").write_text("x" * 999), "001.dcm: is not a DICOM file; copy or export"),
    "link": (lambda f: _link(f / "001.dcm"), "001.dcm: cannot be read (it is empty, a broken link or no file)"),
    "one thin slice": (
        lambda f: [p.unlink() for p in sorted(f.iterdir())[1:]],
        "001.dcm: is a single slice without SliceThickness; give the whole series.",
    ),
    "no slices": (
        lambda f: [p.unlink() for p in f.iterdir()],
        "bad: holds no DICOM files; give the folder of a",
    ),
}
"""What makes a sound series in a folder `bad` unusable, and the text that the message must contain."""


def region(*, x_cm=0.02, y_cm=0.03, tissue=1, units=3):
    """Return a region of ultrasound with the size of its pixels."""
    found = pydicom.Dataset()
    found.RegionSpatialFormat, found.RegionDataType = 1, tissue
    found.PhysicalUnitsXDirection = found.PhysicalUnitsYDirection = units
    found.PhysicalDeltaX, found.PhysicalDeltaY = x_cm, y_cm
    return found


def write_picture(path, pixels, kind="MONOCHROME2", *, frames=None, **more):
    """Write (H, W), (H, W, 3) or, with a number of frames, (Z, ...) as ultrasound."""
    image = pydicom.Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = UltrasoundMultiFrameImageStorage if frames else UltrasoundImageStorage
    image.SOPInstanceUID, image.Modality = generate_uid(), "US"
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    shape = pixels.shape[1:] if frames else pixels.shape
    image.Rows, image.Columns, image.SamplesPerPixel = shape[0], shape[1], shape[2] if len(shape) > 2 else 1
    image.BitsAllocated = image.BitsStored = 8 * pixels.dtype.itemsize
    image.HighBit, image.PixelRepresentation = image.BitsStored - 1, 0
    image.PhotometricInterpretation = kind
    if image.SamplesPerPixel > 1:
        image.PlanarConfiguration = 0
    if frames:
        image.NumberOfFrames = frames
    for tag, value in more.items():
        setattr(image, tag, value)
    image.PixelData = pixels.tobytes()
    image.save_as(path, enforce_file_format=True)
    return path
