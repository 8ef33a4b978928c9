"""The bone surface of a tracked sweep, in 3-D."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.files import atomic_path, require_writable
from scripts.common.names import is_picture, printable, stem
from scripts.common.ranks import is_rank0
from scripts.inference.case_handler import (
    CaseHandler,
    case_name,
    decollated,
    gather_cases,
    label_array,
    record_case,
    source_path,
)
from scripts.ultrabones.frames import frames_of, pixel_size_mm
from scripts.ultrabones.tracking import read_tracking, rigid, surface_points_mm

MAX_DRAWN = 20_000
logger = logging.getLogger(__name__)


class SweepSurface(CaseHandler):
    """Write the bone of a tracked sweep as `sweep.ply`, points in the tracker's mm, and `sweep.png`, a picture of them.

    A sweep is a folder of pictures, each of which `poses` names, or one file of several frames, which it numbers from
    0. Frames without a pose are left out and counted in the log.

    Args:
        output_dir: folder of both.
        poses: table of them; see `read_tracking`.
        calibration: pose of the image relative to the probe, as `rigid` takes it.
        pixel_mm: height and width of a pixel; None takes those of the file, which pictures do not tell.
        pred_key: key of the predicted label map in the engine's output.

    Raises:
        InputError: `read_tracking` refuses the table, there is no calibration, or it is not six numbers; while it runs:
            the size of a pixel is not known, or there is a second sweep; at the end: no frame has a pose, or two have
            the same name.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(
        self,
        output_dir: str | Path,
        *,
        poses: str | Path,
        calibration: Sequence[float] | None,
        pixel_mm: Sequence[float] | None = None,
        pred_key: str = "pred",
    ) -> None:
        super().__init__()
        if calibration is None or len(calibration) != 6 or not np.isfinite(calibration).all():
            raise InputError(f"calibration is {calibration}: give x, y, z in mm and three angles in degrees.")
        self.output_dir, self.table = require_writable(output_dir), printable(poses)
        self.poses, self.calibration = read_tracking(poses), rigid(calibration)
        self.pixel_mm, self.pred_key = pixel_mm, pred_key

    def __call__(self, engine: Engine) -> None:
        """Collect the points of the cases of one iteration."""
        for batch_item, output_item in decollated(engine):
            case, source = case_name(batch_item), source_path(batch_item)
            pred = label_array(output_item, self.pred_key, case=case)
            size_mm = pixel_size_mm(pred, self.pixel_mm, source=source)
            if size_mm is None:
                raise InputError(f"{case}: does not tell the size of a pixel; set pixel_mm.")
            frames = frames_of(pred)
            is_sweep = not is_picture(Path(source)) and len(frames) > 1
            others = [known for known, (_, (_, sweep)) in self._cases.items() if sweep and known != case]
            if is_sweep and others:
                raise InputError(f"{case}: {self.table} has poses of one sweep, which {others[0]} is; run it alone.")
            names = map(str, range(len(frames))) if is_sweep else [stem(source).removesuffix(".dcm")]
            placed = {name: self._points(frame, name, size_mm) for name, frame in zip(names, frames, strict=True)}
            record_case(self._cases, case, source=source, value=(placed, is_sweep))

    def _points(self, frame: np.ndarray, name: str, size_mm: tuple[float, float]) -> np.ndarray | None:
        pose = self.poses.get(name)
        return None if pose is None else surface_points_mm(frame, size_mm, pose @ self.calibration)

    def _finish(self, _: Engine) -> None:
        """Write the points of all cases."""
        frames = [pair for _, (placed, _) in gather_cases(self._cases).values() for pair in placed.items()]
        found = [points for _, points in frames if points is not None]
        if not is_rank0() or not frames:
            return
        if repeated := [name for name, count in Counter(name for name, _ in frames).items() if count > 1]:
            raise InputError(f"{self.table}: two images are named {printable(repeated[0])}; give one sweep.")
        if not found:
            raise InputError(f"{self.table}: has a pose of none of the frames, such as {printable(frames[0][0])}.")
        if len(found) < len(frames):
            lacking = len(frames) - len(found)
            logger.warning("%d of %d frames have no pose and are left out of the sweep", lacking, len(frames))
        points = np.concatenate(found)
        write_ply(points, self.output_dir / "sweep.ply")
        draw_points(points, self.output_dir / "sweep.png")
        path = self.output_dir / "sweep.ply"
        logger.info("wrote %d points of bone in %d frames to %s", len(points), len(found), path)


def write_ply(points_mm: np.ndarray, path: Path) -> None:
    """Write points, (N, 3), as PLY, binary float32."""
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat binary_little_endian 1.0\ncomment mm\nelement vertex {len(points_mm)}\n{axes}end_header\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(head.encode() + np.ascontiguousarray(points_mm, dtype="<f4").tobytes())


def draw_points(points_mm: np.ndarray, path: Path) -> None:
    """Draw points, (N, 3), from three sides, at most `MAX_DRAWN` of them; the colour tells the order of the frames."""
    shown = points_mm[:: max(1, -(-len(points_mm) // MAX_DRAWN))]
    figure = Figure(figsize=(13, 4.5), dpi=100, layout="constrained")
    for axes, (across, up) in zip(figure.subplots(1, 3), ((0, 1), (0, 2), (1, 2)), strict=True):
        axes.scatter(shown[:, across], shown[:, up], c=np.arange(len(shown)), s=1, cmap="viridis")
        axes.set(xlabel=f"{'xyz'[across]} in mm", ylabel=f"{'xyz'[up]} in mm", aspect="equal")
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
