"""Whole archives: what comes out equals the phantom that they were cut from, and each fault is handled and named."""

import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from scripts.common.errors import InputError
from scripts.ukbb import subject as module
from scripts.ukbb.archive import CHANNELS
from scripts.ukbb.subject import Options, case_name, prepare_subject, stitch
from tools.ukbb_archives import Layout, body, contrasts, station_files, station_points, whole_body

OWN_GRID = Options(slice_spacing_mm=18.0)
"""The slices of the small stations, so that nothing is interpolated."""


def truth(grid, intensities=body):
    """The phantom at the voxels of a grid, (4, X, Y, Z)."""
    indices = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    points = np.moveaxis(nib.affines.apply_affine(grid.affine, indices), -1, 0)
    images = contrasts(*intensities(points))
    return np.stack([images["F"], images["W"], images["in"], images["opp"]])


def seen(result, layout):
    """Which voxels a station covers."""
    mask = np.zeros(result.grid.shape, bool)
    to_voxels = np.linalg.inv(result.grid.affine)
    for station in layout:
        points = np.moveaxis(station_points(station), 0, -1).reshape(-1, 3)
        mask[tuple(np.rint(nib.affines.apply_affine(to_voxels, points)).astype(int).T)] = True
    return mask


def pixels(item, change):
    item.PixelData = change(item.pixel_array).astype("<u2").tobytes()


def brighter(station, factor):
    for item in (item for slices in station.values() for item in slices):
        pixels(item, lambda values: np.rint(values * factor))


def swap(station, one="F", other="W"):
    for a, b in zip(station[one], station[other], strict=True):
        a.PixelData, b.PixelData = b.PixelData, a.PixelData


def test_stitched_volume_is_the_phantom_voxel_by_voxel(sound):
    from tools.ukbb_archives import SMALL

    result = stitch(sound, OWN_GRID)
    assert result.grid.shape == (44, 36, 51)
    mask = seen(result, SMALL)
    assert 0.9 < mask.mean() < 1
    np.testing.assert_array_equal(result.channels, np.where(mask, truth(result.grid), 0))
    assert result.facts["missing_stations"] == result.facts["swapped_stations"] == result.facts["notes"] == []
    assert {row["factor"] for row in result.facts["stations"]} == {1.0}


def test_stations_of_different_spacing_are_interpolated_to_one(archive):
    """Slices as in UK Biobank, four times as thick; the phantom changes linearly, so that interpolation is exact."""
    steps, rows = (12.0, 18.0, 18.0, 18.0, 14.0, 16.0), (34, 36, 36, 36, 32, 30)

    def ramp(points):
        return 1900 + points[2] / 2 + points[0], 1000 + points[2] - points[1]

    top, layout = 0.0, []
    for hold, n_rows, step in zip(("noBH", *["BH_17s"] * 3, "noBH", "noBH"), rows, steps, strict=True):
        layout.append(Layout(f"Dixon_{hold}", (44, n_rows, 11), top, step, 11.0))
        top -= 10 * step - 38
    path = archive(whole_body("1000001", layout, intensities=ramp))
    result = stitch(path, Options(slice_spacing_mm=7.0, match=False))
    assert result.grid.shape == (44, 36, 111)
    inner = np.s_[:, :, 3:-3, :]
    np.testing.assert_allclose(result.channels[inner], truth(result.grid, ramp)[inner], atol=1.5)


def test_volume_lies_where_simpleitk_sees_the_slices(sound, tmp_path):
    prepare_subject({"case": "a_2_0", "image": str(sound)}, out_dir=tmp_path, options=OWN_GRID)
    with zipfile.ZipFile(sound) as packed:
        names = [name for name in packed.namelist() if name.startswith("1.2.826.1000001.3.2.")]
        packed.extractall(tmp_path / "water3", names)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "water3")))
    station, volume = reader.Execute(), sitk.ReadImage(str(tmp_path / "images" / "a_2_0.nii.gz"))
    found = sitk.GetArrayFromImage(volume)
    for index in [(30, 20, 5), (12, 18, 4), (22, 9, 6), (5, 5, 5)]:
        *where, channel = volume.TransformPhysicalPointToIndex([*station.TransformIndexToPhysicalPoint(index), 1.0])
        assert channel == CHANNELS.index("water")
        assert found[(channel, *where[::-1])] == station[index]


def test_files_of_a_subject(sound, tmp_path):
    facts = json.loads(prepare_subject({"case": "1_2_0", "image": str(sound)}, out_dir=tmp_path, options=Options()))
    image = nib.load(tmp_path / "images" / "1_2_0.nii.gz")
    assert image.shape == (44, 36, 301, 4)
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header["descrip"].item() == b"fat,water,in_phase,opposed_phase"
    np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms()[:3], (11, 11, 3))
    assert json.loads((tmp_path / "images" / "1_2_0.json").read_text()) == facts
    assert facts["channels"] == list(CHANNELS)
    assert Image.open(tmp_path / "qc" / "1_2_0.png").height > 400
    liver = image.get_fdata()[..., 1] > 470
    assert (image.affine @ [*np.argwhere(liver).mean(axis=0), 1])[0] > 40, "the liver is on the right"


def test_rows_that_run_the_other_way_change_nothing(archive, stations, sound):
    for item in (item for slices in stations[3].values() for item in slices):
        pixels(item, lambda values: values[::-1])
        left, back, up = map(float, item.ImagePositionPatient)
        item.ImagePositionPatient = [left, back + (int(item.Rows) - 1) * 11.0, up]
        item.ImageOrientationPatient = [1, 0, 0, 0, -1, 0]
    np.testing.assert_array_equal(stitch(archive(stations), OWN_GRID).channels, stitch(sound, OWN_GRID).channels)


@pytest.mark.parametrize("number", range(1, 7))
def test_missing_station_is_named_and_leaves_a_gap(archive, stations, sound, number):
    del stations[number - 1]
    result, whole = stitch(archive(stations), OWN_GRID), stitch(sound, OWN_GRID)
    assert result.facts["missing_stations"] == [number]
    assert [row["station"] for row in result.facts["stations"]] == [n for n in range(1, 7) if n != number]
    if number in (1, 6):
        assert result.facts["gaps"] == []
        assert result.grid.shape[2] == whole.grid.shape[2] - 8
        return
    (gap,) = result.facts["gaps"]
    first, last = gap["first_slice"], gap["last_slice"]
    assert last - first + 1 == 5
    assert not result.channels[..., first : last + 1].any()
    kept = np.r_[0:first, last + 1 : result.grid.shape[2]]
    np.testing.assert_array_equal(result.channels[..., kept], whole.channels[..., kept])
    assert gap["mm"] == [(whole.grid.affine @ [0, 0, z, 1])[2] for z in (first, last)]


def test_station_without_a_contrast_is_left_out_and_named(archive, stations):
    del stations[3]["opp"]
    facts = stitch(archive(stations), OWN_GRID).facts
    assert facts["missing_stations"] == [4]
    assert "station at -612 to -432 mm: no opposed_phase; left out" in facts["notes"]


def test_series_without_a_slice_is_left_out_and_named(archive, stations):
    del stations[1]["F"][4]
    facts = stitch(archive(stations), OWN_GRID).facts
    assert facts["missing_stations"] == [2]
    assert "slices are missing, duplicated or shifted" in facts["notes"][0]


def test_newest_of_repeated_stations_wins(archive, stations, sound):
    from tools.ukbb_archives import SMALL

    again = station_files(SMALL[2], 13, subject="1000001", time=100900.0)
    for slices in stations[2].values():
        for item in slices:
            pixels(item, np.zeros_like)
    result = stitch(archive([again, *stations]), OWN_GRID)
    np.testing.assert_array_equal(result.channels, stitch(sound, OWN_GRID).channels)
    assert [row["repeats"] for row in result.facts["stations"]] == [0, 0, 1, 0, 0, 0]


def test_older_scan_is_used_if_the_newest_is_not_whole(archive, stations, sound):
    from tools.ukbb_archives import SMALL

    again = station_files(SMALL[2], 13, subject="1000001", time=100900.0)
    brighter(again, 3)
    del again["W"]
    result = stitch(archive([again, *stations]), OWN_GRID)
    np.testing.assert_array_equal(result.channels, stitch(sound, OWN_GRID).channels)
    assert result.facts["notes"] == ["the newest scan of Dixon_BH_17s_F is not whole; an older one is used"]


def test_same_slices_twice_count_once(archive, stations, sound):
    path = archive(stations)
    with zipfile.ZipFile(path, "a") as packed:
        for name in packed.namelist()[:30]:
            packed.writestr(f"copy_{name}", packed.read(name))
    np.testing.assert_array_equal(stitch(path, OWN_GRID).channels, stitch(sound, OWN_GRID).channels)


def test_water_of_another_shape_and_position_is_put_where_it_lies(archive, stations, sound):
    del stations[2]["W"][-1]  # the lowest slice
    for item in stations[3]["F"]:  # without the leftmost two columns
        pixels(item, lambda values: values[:, 2:])
        item.ImagePositionPatient = [float(item.ImagePositionPatient[0]) + 22, *item.ImagePositionPatient[1:]]
        item.Columns = 42
    result, whole = stitch(archive(stations), OWN_GRID), stitch(sound, OWN_GRID)
    np.testing.assert_array_equal(result.channels[:, :-2], whole.channels[:, :-2])
    unequal = {row["station"]: row["unequal"] for row in result.facts["stations"]}
    assert "water: shape 44 x 36 x 10 instead of 44 x 36 x 11" in unequal[3]
    assert "fat: shape 42 x 36 x 11 instead of 44 x 36 x 11" in unequal[4]
    assert unequal[1] == unequal[6] == ""


@pytest.mark.parametrize("numbers", [[1], [3], [6], [2, 3], [1, 5]])
def test_swapped_stations_are_reported_and_corrected_only_on_request(archive, stations, sound, numbers):
    for number in numbers:
        swap(stations[number - 1])
    path, whole = archive(stations), stitch(sound, OWN_GRID)
    reported, fixed = stitch(path, OWN_GRID), stitch(path, OWN_GRID._replace(fix_swaps=True))
    assert reported.facts["swapped_stations"] == fixed.facts["swapped_stations"] == numbers
    assert [reported.facts["swaps_fixed"], fixed.facts["swaps_fixed"]] == [False, True]
    assert (reported.channels != whole.channels).any()
    np.testing.assert_array_equal(fixed.channels, whole.channels)


def test_swap_of_all_stations_is_noted(archive, stations):
    for station in stations:
        swap(station)
    facts = stitch(archive(stations), OWN_GRID).facts
    assert facts["swapped_stations"] == []
    assert "water lies below the skin; fat and water may be exchanged in all of them" in facts["notes"][0]


def test_brightness_is_matched_and_fat_fractions_stay(archive, stations, sound):
    brighter(stations[1], 2)
    brighter(stations[4], 0.5)
    path, whole = archive(stations), stitch(sound, OWN_GRID)
    matched, plain = stitch(path, OWN_GRID), stitch(path, OWN_GRID._replace(match=False))
    np.testing.assert_allclose(matched.channels, whole.channels, atol=4)
    assert np.abs(plain.channels - whole.channels).max() > 200
    assert [row["factor"] for row in matched.facts["stations"]] == pytest.approx([1, 0.5, 1, 1, 2, 1], rel=0.01)


def test_station_that_is_a_hundred_times_brighter_is_not_matched(archive, stations):
    brighter(stations[0], 50)
    facts = stitch(archive(stations), OWN_GRID).facts
    assert "intensities of stations 1 and 2 could not be matched" in facts["notes"]
    assert facts["stations"][0]["factor"] == 1


def test_field_of_the_in_phase_image_corrects_all_channels(sound, monkeypatch):
    whole, given = stitch(sound, OWN_GRID), []

    def field(in_phase, spacing_mm):
        given.extend([in_phase.copy(), spacing_mm])
        return np.where(np.arange(51) < 20, 2, 1).astype(np.float32)[None, None]

    monkeypatch.setattr(module, "bias_field", field)
    result = stitch(sound, OWN_GRID._replace(n4=True))
    np.testing.assert_array_equal(given[0], whole.channels[2])
    assert given[1] == pytest.approx([11, 11, 18])
    np.testing.assert_array_equal(result.channels[..., 20:], whole.channels[..., 20:])
    np.testing.assert_allclose(result.channels[..., :20], whole.channels[..., :20] / 2, atol=0.5)


def test_name_keeps_the_instance():
    from pathlib import Path

    assert case_name(Path("x/1234567_20201_3_1.zip")) == "1234567_3_1"
    with pytest.raises(InputError, match=r"not named like 1234567_20201_2_0\.zip"):
        case_name(Path("1234567_20204_3_1.zip"))
