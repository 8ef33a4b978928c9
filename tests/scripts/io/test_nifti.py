import gzip
import os
import re
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.common.grids import Grid
from scripts.io import memory
from scripts.io.nifti import StoredVolume, check_geometry, check_intensities, read_nifti
from tests.conftest import ROOT
from tests.scripts.io.nifti_headers import BAD_HEADERS, GUESSED_HEADERS, QFORM, add_bytes, editing
from tests.scripts.io.volume_files import BAD_FILES, OBLIQUE, SHAPE, truncate, write_array, write_image


def refused(path):
    with pytest.raises(InputError) as error:
        read_nifti(path)
    return str(error.value)


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_file_is_refused_with_its_path(tmp_path, message):
    path = write_image(tmp_path / "ct.nii.gz")
    BAD_FILES[message](path)
    assert refused(path).startswith(f"{path}: {message}")
    assert refused(str(path)).startswith(f"{path}: {message}")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "NII.GZ"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_and_affine_equal_those_of_nibabel(tmp_path, suffix, dtype, image_class):
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    path = tmp_path / f"ct.{suffix}"
    nib.save(image_class(array, OBLIQUE), path)
    volume, expected = read_nifti(path), nib.load(path)
    np.testing.assert_array_equal(volume.values(), expected.get_fdata())
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.values().dtype == np.float32
    assert volume.values().flags.c_contiguous
    assert volume.grid.shape == SHAPE


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 1.0), (1.0, -1024.0), (-2.0, 0.0), (1e-3, 0.0)])
def test_scaled_values_equal_those_of_nibabel(tmp_path, slope, inter):
    stored = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(stored * slope + inter, OBLIQUE)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = read_nifti(tmp_path / "ct.nii.gz")
    assert volume.stored.dtype == np.int16
    expected = nib.load(tmp_path / "ct.nii.gz").get_fdata()
    np.testing.assert_allclose(volume.values(), expected, rtol=1e-6)
    np.testing.assert_allclose(volume.value_range, (expected.min(), expected.max()))


def test_truncated_uncompressed_file_is_refused(tmp_path):
    path = write_image(tmp_path / "ct.nii")
    truncate(path, -30)
    message = (
        "cannot be read whole (its header announces 772 bytes, the file holds at most 742); copy or export it again."
    )
    assert refused(path) == f"{path}: {message}"


@pytest.mark.parametrize("sizes", [(32767, 32767, 32767), (-5, 6, 7), (0, 6, 7)])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_header_with_impossible_sizes_is_refused(tmp_path, sizes, suffix):
    data = bytearray(write_image(tmp_path / "a.nii").read_bytes())
    data[42:48] = np.array(sizes, "<i2").tobytes()
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    message = r"(cannot be read whole \(its header announces|has shape)"
    assert re.match(rf"{path}: {message}", refused(path))


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_header_is_refused(tmp_path, name):
    path = write_image(tmp_path / "ct.nii.gz")
    change, message = BAD_HEADERS[name]
    change(path)
    assert refused(path).startswith(f"{path}: ")
    assert message in refused(path)


@pytest.mark.parametrize("name", GUESSED_HEADERS)
def test_header_that_leaves_a_choice_is_read_with_one_warning(tmp_path, caplog, name):
    path = write_image(tmp_path / "ct.nii")
    change, message = GUESSED_HEADERS[name]
    change(path)
    for _ in range(2):
        np.testing.assert_array_equal(read_nifti(path).values(), nib.load(path).get_fdata())
    np.testing.assert_array_equal(read_nifti(path).affine, nib.load(path).affine)
    warnings = [record.message for record in caplog.records if record.name.startswith("scripts")]
    assert [warning.startswith(f"{path}: {message}") for warning in warnings] == [True]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: None,
        editing(**QFORM),
        editing(**QFORM, pixdim_0=0),
        editing(sform_code=5),
        editing(quatern_b=np.nan),
        editing(scl_slope=0, scl_inter=np.nan),
        editing(xyzt_units=0),
        editing(xyzt_units=7),
        editing(intent_code=1002),
        editing(bitpix=0),
        editing(sizeof_hdr=348, magic=b"ni1"),
        lambda path: add_bytes(path, bytes(512)),
    ],
)
def test_fields_that_do_not_matter_are_not_refused(tmp_path, caplog, change):
    path = write_image(tmp_path / "ct.nii.gz")
    expected = nib.load(path).get_fdata()
    change(path)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.values(), expected)
    np.testing.assert_allclose(volume.affine, nib.load(path).affine, atol=1e-5)
    assert [record for record in caplog.records if record.name.startswith("scripts")] == []


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_integers_beyond_float64_are_rounded(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.full(SHAPE, 2**53 + 1, dtype), OBLIQUE, dtype=dtype), tmp_path / "ct.nii")
    assert read_nifti(tmp_path / "ct.nii").values()[0, 0, 0] == 2.0**53


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is a folder, a pipe or a device; give a NIfTI file."),
        (os.mkfifo, "is a folder, a pipe or a device; give a NIfTI file."),
        (lambda path: path.symlink_to("/dev/zero"), "is a folder, a pipe or a device; give a NIfTI file."),
        (lambda path: path.symlink_to("none.nii.gz"), "no such file where this link points; correct the path."),
        (lambda path: path.symlink_to(path), "cannot be read whole (Too many levels of symbolic links)"),
        (lambda path: path.write_bytes(gzip.compress(gzip.compress(b"x" * 999))), "cannot be read whole (not a NIfTI"),
        (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(999)), "cannot be read whole (Not a gzipped file"),
    ],
)
def test_what_is_no_nifti_file_is_refused_without_waiting(tmp_path, make, message):
    path = tmp_path / "ct.nii.gz"
    make(path)
    assert refused(path).startswith(f"{path}: {message}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission_is_refused(tmp_path):
    path = write_image(tmp_path / "ct.nii")
    path.chmod(0)
    assert refused(path) == f"{path}: cannot be read whole (Permission denied); correct its permissions."


def test_path_that_is_too_long_or_not_utf8_is_refused_printably(tmp_path):
    assert "File name too long" in refused(tmp_path / ("x" * 300))
    path = tmp_path / os.fsdecode(b"p9\xe9\n.nii")
    assert refused(path) == f"{tmp_path}/p9\\udce9\\n.nii: no such file; correct the path."


def write_bomb(path, change, gigabytes):
    """Write a sound file, change its header, and append zeros that take a thousandth of their size."""
    change(write_image(path))
    zeros = gzip.compress(bytes(1 << 26), compresslevel=1)
    with path.open("ab") as file:
        for _ in range(gigabytes * 16):
            file.write(zeros)
    return path


def test_gzip_file_that_goes_on_for_gigabytes_is_not_unpacked(tmp_path):
    path = write_bomb(tmp_path / "ct.nii.gz", lambda path: None, gigabytes=16)
    assert refused(path).startswith(f"{path}: cannot be read whole (it goes on after the last voxel")


def test_volume_that_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    smaller = {f"srow_{axis}_{n}": 0.5 for n, axis in enumerate("xyz")}
    path = write_bomb(tmp_path / "ct.nii.gz", editing(dim_1=1000, dim_2=1000, dim_3=1000, **smaller), gigabytes=2)
    assert refused(path).startswith(f"{path}: 1000 x 1000 x 1000 voxels need 6.00 GB of memory, 1.00 GB are free; crop")
    path = write_bomb(tmp_path / "ct.nii.gz", editing(dim_1=2000, dim_2=2000, dim_3=1000, **smaller), gigabytes=8)
    assert refused(path).startswith(f"{path}: has 2000 x 2000 x 1000 voxels, more than 2.1 billion")


def test_limit_of_the_address_space_is_minded(tmp_path):
    """Formerly numpy raised a MemoryError, or the system killed the process."""
    smaller = {f"srow_{axis}_{n}": 0.5 for n, axis in enumerate("xyz")}
    path = write_bomb(tmp_path / "ct.nii.gz", editing(dim_1=1000, dim_2=1000, dim_3=1000, **smaller), gigabytes=2)
    limit = 6 * 10**9
    code = "import sys; from scripts.io.nifti import read_nifti; read_nifti(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "InputError" in done.stderr
    assert "voxels need 6.00 GB of memory" in done.stderr


def test_volume_of_one_slice_keeps_three_axes(tmp_path):
    path = write_array(tmp_path / "slice.nii.gz", np.arange(12, dtype=np.float32).reshape(3, 4, 1))
    assert read_nifti(path).values().shape == (3, 4, 1)


def test_values_may_be_written_to(tmp_path):
    """A volume that is C- and Fortran-contiguous at once is not copied."""
    volume = read_nifti(write_array(tmp_path / "line.nii", np.arange(5, dtype=np.float32).reshape(5, 1, 1)))
    assert volume.values().flags.writeable


@pytest.mark.parametrize("mm", [0.01, 50.0])
def test_spacing_at_the_limits_is_accepted(mm):
    check_geometry(Grid((2, 2, 2), np.diag([mm, 1, 1, 1])), "ct.nii")


def test_sheared_affine_is_accepted():
    """A tilted gantry shears the volume; up to 30 degrees are common."""
    sheared = np.eye(4)
    sheared[1, 2] = np.tan(np.deg2rad(30))
    check_geometry(Grid((2, 2, 2), sheared), "ct.nii")


def test_translation_that_is_not_finite_is_not_blamed_on_the_spacing():
    affine = np.eye(4)
    affine[0, 3] = np.inf
    with pytest.raises(InputError, match=r"^ct\.nii: its affine holds NaN or infinity; correct the header\.$"):
        check_geometry(Grid((2, 2, 2), affine), "ct.nii")


def test_field_of_view_larger_than_a_patient_is_refused():
    """Resampled to 1.5 mm, it would take terabytes."""
    check_geometry(Grid((512, 512, 2500), np.diag([1.0, 1.0, 1.0, 1.0])), "ct.nii")
    message = r"^ct\.nii: its field of view of 5120 x 5120 x 2000 mm is 52\.4 m3, a patient's is at most 3;"
    with pytest.raises(InputError, match=message):
        check_geometry(Grid((512, 512, 200), np.diag([10.0, 10.0, 10.0, 1.0])), "ct.nii")


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_values_beyond_float32_are_refused(value):
    stored = np.zeros((2, 2, 2))
    stored[0, 0, 0] = value
    with pytest.raises(InputError, match=r"^ct\.nii: holds values from .* to .*, which float32 cannot hold; export it"):
        check_intensities(StoredVolume(stored, np.eye(4)), "ct.nii")


def test_values_that_are_equal_as_float32_are_constant():
    volume = StoredVolume(np.array([[[1.0, 1.0 + 1e-12]]]), np.eye(4))
    with pytest.raises(InputError, match=r"^ct\.nii: is constant, every voxel is 1; this is not an image\.$"):
        check_intensities(volume, "ct.nii")


def test_constant_image_is_refused_with_its_scaled_value():
    volume = StoredVolume(np.full((2, 2, 2), 3, np.int16), np.eye(4), slope=2.0, inter=-1024.0)
    with pytest.raises(InputError, match=r"^ct\.nii: is constant, every voxel is -1018; this is not an image\.$"):
        check_intensities(volume, "ct.nii")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (-2.0, 5.0)])
def test_voxel_that_is_not_finite_is_found(value, slope, inter):
    stored = np.zeros((3, 3, 3), np.float32)
    stored[1, 2, 0], stored[0, 0, 0] = value, 7
    with pytest.raises(InputError, match=r"^ct\.nii: holds NaN or infinite voxels; export it again or replace them\.$"):
        check_intensities(StoredVolume(stored, np.eye(4), slope, inter), "ct.nii")


def test_flat_file_is_read_as_one_slice_only_if_wanted(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 5), dtype=np.float32), np.diag([2.0, 3.0, 1.0, 1.0])), tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii", flat=True).stored.shape == (4, 5, 1)
    with pytest.raises(InputError, match=r"has shape \(4, 5\), need \(X, Y, Z\)"):
        read_nifti(tmp_path / "a.nii")
