import numpy as np
import pytest
from PIL import Image

from scripts.common.errors import InputError
from scripts.ultrabones.tracking import read_tracking, rigid, surface_points_mm
from tools.ultrasound_phantom import FIELD_MM
from tools.ultrasound_sweep import CALIBRATION, write_sweep

HEAD = "timestamp,space_factor,x,y,z,euler_x,euler_y,euler_z\n"


def turn(axis, degrees):
    """Right-handed, about one fixed axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def test_pose_turns_about_fixed_axes_one_after_the_other_and_then_moves():
    matrix = rigid([1, 2, 3, 10, 20, 30])
    np.testing.assert_allclose(matrix[:3, :3], turn(2, 30) @ turn(1, 20) @ turn(0, 10))
    assert matrix[:3, 3].tolist() == [1, 2, 3]


def test_published_table_is_read_by_its_timestamps(tmp_path):
    path = tmp_path / "tracking.csv"
    path.write_text(f"{HEAD}0162705, 1, 1, 2, 3, 0, 0, 90\n162755,1,0,0,0,0,0,0\n")
    poses = read_tracking(path)
    assert list(poses) == ["0162705", "162755"]
    np.testing.assert_array_equal(poses["0162705"], rigid([1, 2, 3, 0, 0, 90]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "no line holds a frame of its own and six numbers"),
        (f"{HEAD}1,1,1,2,3,0,0,\n", "line 2 holds"),
        (f"{HEAD}1,1,1,2,3,0,0,0\n1,1,1,2,3,0,0,0\n", "line 3 holds"),
        (f"{HEAD},1,1,2,3,0,0,0\n", "line 2 holds"),
        (f"{HEAD}1,1,1,2,inf,0,0,0\n", "line 2 holds"),
        ("frame,x,y\n1,2,3\n", "has no column z, euler_x, euler_y, euler_z; give frame, x, y"),
        ("x,y,z,euler_x,euler_y,euler_z\n1,2,3,0,0,0\n", "has no column frame;"),
        ("", "cannot be read as a table"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, text, message):
    path = tmp_path / "tracking.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_tracking(path)


def test_missing_table_is_a_wrong_path(tmp_path):
    with pytest.raises(InputError, match="no such file; correct poses"):
        read_tracking(tmp_path / "tracking.csv")


def test_each_run_of_a_column_is_a_point_in_its_middle():
    mask = np.zeros((9, 3), dtype=bool)
    mask[[0, 1, 2, 7, 8], 1] = mask[4, 2] = True
    points = surface_points_mm(mask, (0.5, 2), np.eye(4))
    assert points.tolist() == [[3, 0.75, 0], [3, 4, 0], [5, 2.25, 0]]
    assert surface_points_mm(np.zeros((4, 4)), (1, 1), np.eye(4)).shape == (0, 3)


def test_labels_of_a_sweep_lie_on_the_bone(tmp_path):
    """To half a pixel of 0.2 mm on average, by poses that were written to a file and read from it."""
    bone = write_sweep(tmp_path, frames=5, size=(205, 240))
    poses, pixel_mm = read_tracking(tmp_path / "tracking.csv"), (FIELD_MM[0] / 205, FIELD_MM[1] / 240)
    for path in sorted((tmp_path / "labels").iterdir()):
        points = surface_points_mm(np.asarray(Image.open(path)) > 0, pixel_mm, poses[path.stem] @ rigid(CALIBRATION))
        assert len(points) > 50
        assert bone.distances_mm(points).mean() < 0.1
        assert bone.distances_mm(points + 1).mean() > 0.5
