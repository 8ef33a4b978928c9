from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from PIL import Image

from scripts.common.errors import InputError
from scripts.io.pictures import PICTURE_AFFINE
from scripts.ultrabones.sweep import SweepSurface
from tools.ultrasound_phantom import FIELD_MM
from tools.ultrasound_sweep import CALIBRATION, write_sweep

SIZE = (82, 96)
PIXEL_MM = (FIELD_MM[0] / SIZE[0], FIELD_MM[1] / SIZE[1])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, write_sweep(folder, frames=6, size=SIZE)


def run(folder, out, masks, *, cases=None, **options):
    """Run the handler on (name of the file, frames of (H, W)) and return its points."""
    cases = iter(cases or [Path(name).stem.removesuffix(".nii") for name, _ in masks])
    given = {"poses": folder / "tracking.csv", "calibration": CALIBRATION, "pixel_mm": PIXEL_MM, **options}
    handler = SweepSurface(out, **given)

    def step(engine, item):
        name, frames = item
        volume = torch.from_numpy(np.stack(frames).transpose(2, 1, 0)[None].astype(np.uint8))
        tensor = MetaTensor(volume, affine=torch.from_numpy(PICTURE_AFFINE), meta={"filename_or_obj": str(name)})
        engine.state.batch, engine.state.output = [{"image": tensor, "case": next(cases)}], [{"pred": tensor}]
        handler(engine)
        return engine.state.output

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, handler._finish)
    engine.run(masks)
    return read_ply(out / "sweep.ply")


def read_ply(path):
    head, _, data = path.read_bytes().partition(b"end_header\n")
    points = np.frombuffer(data, "<f4").reshape(-1, 3)
    assert f"element vertex {len(points)}\n".encode() in head
    return points


def labels(folder):
    return [(path, np.asarray(Image.open(path)) > 0) for path in sorted((folder / "labels").iterdir())]


def test_points_of_pictures_lie_on_the_bone(sweep, tmp_path):
    folder, bone = sweep
    points = run(folder, tmp_path, [(path, [mask]) for path, mask in labels(folder)])
    assert len(points) > 200
    assert bone.distances_mm(points).mean() < 0.2  # a pixel is 0.5 mm high
    assert Image.open(tmp_path / "sweep.png").size == (1300, 450)


def test_frames_of_one_file_are_numbered(sweep, tmp_path):
    folder, bone = sweep
    lines = (folder / "tracking.csv").read_text().splitlines()
    numbered = [",".join([str(i), line.partition(",")[2]]) for i, line in enumerate(lines[1:])]
    (tmp_path / "poses.csv").write_text("\n".join([lines[0].replace("timestamp", "frame"), *numbered]))
    frames = [mask for _, mask in labels(folder)]
    points = run(folder, tmp_path, [("sweep.nii.gz", frames)], poses=tmp_path / "poses.csv")
    assert bone.distances_mm(points).mean() < 0.2
    with pytest.raises(InputError, match=r"b: .*poses\.csv has poses of one sweep, which a is; run it alone"):
        run(folder, tmp_path, [("a.nii.gz", frames), ("b.nii.gz", frames)], poses=tmp_path / "poses.csv")


def test_frames_without_a_pose_are_counted(sweep, tmp_path, caplog):
    folder, _ = sweep
    (path, mask), *_ = labels(folder)
    alone = run(folder, tmp_path / "a", [(path, [mask])])
    more = run(folder, tmp_path / "b", [(path, [mask]), ("other.png", [mask])])
    np.testing.assert_array_equal(more, alone)
    assert "1 of 2 frames have no pose" in caplog.text
    with pytest.raises(InputError, match=r"tracking.csv: has a pose of none of the frames, such as other"):
        run(folder, tmp_path / "c", [("other.png", [mask])])


def test_two_images_of_one_name_are_no_sweep(sweep, tmp_path):
    folder, _ = sweep
    (path, mask), *_ = labels(folder)
    with pytest.raises(InputError, match=rf"two images are named {path.stem}; give one sweep"):
        run(folder, tmp_path, [(path, [mask]), (path.parent / "other" / path.name, [mask])], cases="ab")


def test_frames_without_bone_give_no_points(sweep, tmp_path):
    folder, _ = sweep
    assert len(run(folder, tmp_path, [(path, [0 * mask]) for path, mask in labels(folder)])) == 0


@pytest.mark.parametrize("calibration", [None, [1, 2, 3], [0, 0, 0, 0, 0, float("nan")]])
def test_calibration_is_six_numbers(sweep, tmp_path, calibration):
    with pytest.raises(InputError, match=r"give x, y, z in mm and three angles in degrees"):
        SweepSurface(tmp_path, poses=sweep[0] / "tracking.csv", calibration=calibration)


def test_size_of_a_pixel_is_needed(sweep, tmp_path):
    folder, _ = sweep
    with pytest.raises(InputError, match="does not tell the size of a pixel; set pixel_mm"):
        run(folder, tmp_path, [(path, [mask]) for path, mask in labels(folder)], pixel_mm=None)
