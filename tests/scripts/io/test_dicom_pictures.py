from pathlib import Path

import numpy as np
import pydicom
import pytest

from scripts.common.errors import InputError
from scripts.io import colours
from scripts.io.dicom_pictures import is_dicom_picture, pixel_spacing_mm, read_dicom_picture
from scripts.io.pictures import LoadPictureOrVolumed, tells_pixel_size
from tests.scripts.io.dicom_files import region, write_picture, write_series

EXAMPLES = Path(pydicom.data.__file__).parent / "test_files"
GRAY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


@pytest.fixture(autouse=True)
def _nothing_said_before(monkeypatch):
    monkeypatch.setattr(colours, "_said", set())


def test_rows_and_columns_lie_as_those_of_a_picture(tmp_path):
    path = write_picture(tmp_path / "a.dcm", GRAY, SequenceOfUltrasoundRegions=[region()])
    image = LoadPictureOrVolumed("image")({"image": str(path)})["image"]
    assert image.shape == (1, 6, 4, 1)
    np.testing.assert_array_equal(image[0, ..., 0].T, GRAY)
    np.testing.assert_allclose(np.diag(image.affine), [-0.2, -0.3, 1, 1])


def test_frames_become_slices(tmp_path):
    frames = np.stack([GRAY, GRAY + 1, GRAY + 2])
    volume = read_dicom_picture(write_picture(tmp_path / "a.dcm", frames, frames=3))
    np.testing.assert_array_equal(volume.stored, frames.transpose(2, 1, 0))
    assert volume.stored.dtype == np.uint8


def test_colours_become_gray_and_the_log_says_so_once(tmp_path, caplog):
    stacked = np.stack([np.stack([GRAY] * 3, axis=-1)] * 2)
    volume = read_dicom_picture(write_picture(tmp_path / "a.dcm", stacked, "RGB", frames=2))
    np.testing.assert_array_equal(volume.stored[..., 1].T, GRAY)
    assert caplog.text.count("colours are converted to gray") == 1


def test_ybr_is_converted_before_it_becomes_gray(tmp_path):
    ybr = np.stack([GRAY, np.full_like(GRAY, 128), np.full_like(GRAY, 128)], axis=-1)
    volume = read_dicom_picture(write_picture(tmp_path / "a.dcm", ybr, "YBR_FULL"))
    np.testing.assert_allclose(volume.stored[..., 0].T, GRAY, atol=1)


def test_inverted_pictures_are_turned_back(tmp_path):
    deep = GRAY.astype(np.uint16) * 16
    volume = read_dicom_picture(write_picture(tmp_path / "a.dcm", deep, "MONOCHROME1", BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(volume.stored[..., 0].T, 4095 - deep)


def test_real_files_of_other_encodings_are_read():
    """Of a palette, and JPEG of YBR 4:2:2; they come with pydicom."""
    palette = EXAMPLES / "examples_palette.dcm"
    volume = read_dicom_picture(palette)
    expected = pydicom.pixels.apply_color_lut(pydicom.dcmread(palette).pixel_array, pydicom.dcmread(palette)) >> 8
    np.testing.assert_allclose(volume.stored[..., 0].T, expected @ [0.299, 0.587, 0.114], atol=1)
    sweep = EXAMPLES / "examples_ybr_color.dcm"
    volume = read_dicom_picture(sweep)
    assert volume.stored.shape == (320, 240, 30)
    expected = pydicom.dcmread(sweep).pixel_array[7] @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(volume.stored[..., 7].T, expected, atol=1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.3, 0.2]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region()], "PixelSpacing": [9, 9]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(), region(x_cm=0.4, tissue=3)]}, (0.3, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(), region(x_cm=0.4)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(units=4)], "NominalScannedPixelSpacing": [0.3, 0.2]}, (0.3, 0.2)),
        ({"PixelSpacing": [0, 0]}, None),
    ],
    ids=["none", "PixelSpacing", "region first", "tissue only", "two zooms", "region of time", "zero"],
)
def test_size_of_a_pixel(tmp_path, more, expected):
    path = write_picture(tmp_path / "a.dcm", GRAY, **more)
    assert pixel_spacing_mm(path) == (pytest.approx(expected) if expected else None)
    assert tells_pixel_size(path) == (expected is not None)


def test_slices_of_a_series_are_no_pictures(tmp_path):
    folder = write_series(tmp_path / "ct")
    assert [is_dicom_picture(path) for path in sorted(folder.iterdir())] == [False] * 6
    assert is_dicom_picture(write_picture(tmp_path / "a", GRAY, Modality="XC"))
    assert not is_dicom_picture(EXAMPLES / "rtstruct.dcm")
    assert not is_dicom_picture(EXAMPLES / "MR_truncated.dcm")


def test_damaged_and_deep_colours_are_refused_by_name(tmp_path):
    path = write_picture(tmp_path / "a.dcm", GRAY)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"a\.dcm: cannot be read .*; copy or export it again, or as PNG"):
        read_dicom_picture(path)
    with pytest.raises(InputError, match="holds colours of 16 bits; export it with 8"):
        read_dicom_picture(EXAMPLES / "SC_rgb_rle_16bit.dcm")
