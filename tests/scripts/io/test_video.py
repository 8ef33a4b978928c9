import sys

import av
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.inputs import list_cases
from scripts.data.picture_inputs import list_pictures
from scripts.io.pictures import LoadPictureOrVolumed, tells_pixel_size
from scripts.io.video import read_video


def write_video(path, frames):
    """Write gray frames, (H, W) with even sizes, without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape, "gray"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return path


def frames(count=3):
    return [np.random.default_rng(seed).integers(0, 255, (24, 32), dtype=np.uint8) for seed in range(count)]


def test_frames_become_slices(tmp_path):
    path = write_video(tmp_path / "sweep.mkv", frames())
    np.testing.assert_array_equal(read_video(path), np.stack(frames()).transpose(2, 1, 0))
    image = LoadPictureOrVolumed("image")({"image": str(path)})["image"]
    assert image.shape == (1, 32, 24, 3)
    assert not tells_pixel_size(path)


def test_videos_are_cases_where_pictures_are(tmp_path):
    write_video(tmp_path / "sweep.mkv", frames())
    (tmp_path / ".hidden.mp4").touch()
    assert [case["case"] for case in list_pictures(tmp_path)] == ["sweep"]
    assert [case["case"] for case in list_pictures(tmp_path / "sweep.mkv")] == ["sweep"]
    with pytest.raises(InputError, match="holds neither NIfTI"):
        list_cases(tmp_path / "sweep.mkv")


def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(InputError, match=r"a\.mp4: cannot be read \(.*\); convert it to MP4 or to pictures"):
        read_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"b\.mp4: cannot be read \(.*No such file"):
        read_video(tmp_path / "b.mp4")


def test_without_the_package_the_command_that_extracts_frames_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install av; or extract the frames, as with ffmpeg -i VIDEO FOLDER/%04d"):
        read_video(tmp_path / "a.mp4")
