"""Where the frames of a tracked sweep lie, and the bone that they show, in mm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.common.names import printable

POSE_COLUMNS = ("x", "y", "z", "euler_x", "euler_y", "euler_z")
FRAME_COLUMNS = ("frame", "timestamp")


def rigid(pose: Sequence[float]) -> np.ndarray:
    """Return the transform of a pose, (4, 4).

    Args:
        pose: x, y and z in mm, then the angles in degrees by which it is turned about the fixed x, y and z axis, in
            this order, before it is moved.

    >>> (rigid([0, 0, 5, 0, 0, 90]) @ [1, 0, 0, 1]).round(6).tolist()
    [0.0, 1.0, 5.0, 1.0]
    """
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", pose[3:], degrees=True).as_matrix()
    matrix[:3, 3] = pose[:3]
    return matrix


def read_tracking(path: str | Path) -> dict[str, np.ndarray]:
    """Read the poses of the probe.

    Args:
        path: CSV with the columns `frame` or `timestamp`, the name of a picture without its suffix or the number of a
            frame from 0, and `POSE_COLUMNS` as `rigid` takes them; others are ignored, such as the published
            `space_factor`.

    Returns:
        Frame to transform, (4, 4).

    Raises:
        InputError: the file is missing, not such a table or empty, a value is not a number, or a frame is listed twice.
    """
    name = printable(path)
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; correct poses.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read as a table ({printable(error)}); save it as CSV.") from error
    key = next((column for column in FRAME_COLUMNS if column in table), "")
    if missing := [column for column in POSE_COLUMNS if column not in table] + ([] if key else ["frame"]):
        raise InputError(f"{name}: has no column {', '.join(missing)}; give frame, {', '.join(POSE_COLUMNS)}.")
    frames = table[key].fillna("").str.strip()
    poses = table[list(POSE_COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(poses).all(axis=1) | (frames == "") | frames.duplicated()
    if not len(table) or bad.any():
        line = f"line {int(np.argmax(bad)) + 2}" if len(table) else "no line"
        raise InputError(f"{name}: {line} holds a frame of its own and six numbers; correct or remove it.")
    return dict(zip(frames, map(rigid, poses), strict=True))


def surface_points_mm(mask: np.ndarray, pixel_mm: Sequence[float], image_to_world: np.ndarray) -> np.ndarray:
    """Return the bone surface of a frame as points: in each column, the middle of each run of its mask.

    Args:
        mask: of bone.
        pixel_mm: height and width of a pixel.
        image_to_world: transform of points of the image, whose x runs along its columns and y along its rows from the
            outer corner of the first pixel, in mm.

    Shape:
        (H, W) gives (N, 3).

    Source:
        The convention of UltraBones100k, where it is the tracked pose times the calibration.

    >>> surface_points_mm(np.eye(2) > 0, (2, 1), np.eye(4)).tolist()
    [[0.5, 1.0, 0.0], [1.5, 3.0, 0.0]]
    """
    edges = np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    columns, first = np.nonzero(edges.T == 1)
    _, end = np.nonzero(edges.T == -1)  # of the same columns, in the same order
    x_mm, y_mm = (columns + 0.5) * pixel_mm[1], (first + end) / 2 * pixel_mm[0]
    points = np.column_stack([x_mm, y_mm, np.zeros_like(x_mm), np.ones_like(x_mm)])
    return (points @ image_to_world.T)[:, :3]
