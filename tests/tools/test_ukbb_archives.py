import zipfile

import numpy as np

from tools.ukbb_archives import FULL, SMALL, body, contrasts, main, station_points


def test_full_layout_is_that_of_uk_biobank():
    assert [station.shape for station in FULL] == [
        *[(224, 168, 64), (224, 174, 44), (224, 174, 44), (224, 174, 44), (224, 162, 72), (224, 156, 64)]
    ]
    lowest = FULL[-1].top_mm - (FULL[-1].shape[2] - 1) * FULL[-1].step_mm
    assert 360 < -lowest / 3.0 < 375


def test_body_has_liver_on_the_right_and_fat_below_the_skin():
    points = station_points(SMALL[2])
    fat, water = body(points)
    liver = water > 470
    assert points[0][liver & (points[0] > 0)].size > 3 * points[0][liver & (points[0] < 0)].size
    images = contrasts(fat, water)
    assert (images["in"] >= images["opp"]).all()
    assert np.array_equal(fat, np.rint(fat))


def test_command_writes_flat_archives_with_a_manifest(tmp_path):
    assert main([str(tmp_path), "--subjects", "1"]) == 0
    with zipfile.ZipFile(tmp_path / "1000001_20201_2_0.zip") as packed:
        names = packed.namelist()
    assert names[-1] == "manifest.cvs"
    assert len(names) == 24 * 11 + 1
    assert not [name for name in names if "/" in name]
