"""Bad frames of ultrasound among good ones: each fails by name with its reason, and the good ones are done."""

import csv
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

from scripts.common.errors import root_cause
from scripts.io import colours
from scripts.models.universeg import UniverSeg
from scripts.ultrabones.prepare import prepare_ultrabones
from tests.conftest import TINY_OF, message_of, run_bundle
from tests.scripts.io.dicom_files import write_picture
from tests.scripts.models.tiny_networks import tiny_of
from tools.ultrasound_phantom import random_outline, render, write_cohort

pytestmark = pytest.mark.hostile
TINY = TINY_OF["ultrabones"]


def frame(height=81, width=97, seed=0):
    generator = np.random.default_rng(seed)
    return render(random_outline(width, generator), height, generator)


def text_alone(path):
    picture = Image.new("L", (400, 300))
    draw = ImageDraw.Draw(picture)
    for line in range(4):
        draw.text((10, 10 + 20 * line), "12:30:01  MI 0.8  TIs 0.1  L12-3  8 cm", fill=230)
    draw.line((390, 0, 390, 299), fill=90)
    picture.save(path)


def damage(path, size):
    path.write_bytes(path.read_bytes()[:size])


def two_pages(path):
    Image.fromarray(frame()).save(path, save_all=True, append_images=[Image.fromarray(frame(seed=1))])


def dicom(path, pixels=None, kind="MONOCHROME2", *, cut=None, **more):
    write_picture(path, frame() if pixels is None else pixels, kind, **more)
    if cut:
        damage(path, cut)


BAD = {
    "deep.png": (lambda path: Image.fromarray(frame().astype(np.uint16) * 257).save(path), "set white to that of the"),
    "text.png": (text_alone, "it shows text or lines, no ultrasound"),
    "black.png": (lambda path: Image.new("L", (97, 81)).save(path), "is constant"),
    "one_pixel.png": (lambda path: Image.new("L", (1, 1), 9).save(path), "is constant"),
    "pages.tif": (two_pages, "has 2 frames; give one."),
    "words.png": (lambda path: path.write_text("not an image"), "not a picture that can be read; save it as PNG"),
    "empty.jpg": (lambda path: path.touch(), "not a picture that can be read; save it as PNG"),
    "cut.png": (lambda path: (Image.fromarray(frame()).save(path), damage(path, 2000)), "cannot be read whole"),
    "link.png": (lambda path: path.symlink_to("none.png"), "no such file"),
    "words.mp4": (lambda path: path.write_text("not a video"), "convert it to MP4 or to pictures"),
    "pipe.mp4": (os.mkfifo, "is a folder, a pipe or a device; give a video"),
    "cut.dcm": (lambda path: dicom(path, cut=-100), "copy or export it again, or as PNG"),
    "deep.dcm": (lambda path: dicom(path, frame().astype(np.uint16) * 16), "set white to that of the images"),
}
GOOD = {
    "odd.png": lambda path: Image.fromarray(frame()).save(path),
    "narrow.png": lambda path: Image.fromarray(frame(33, 7)).save(path),
    "color.png": lambda path: Image.fromarray(np.stack([frame()] * 3, axis=-1)).save(path),
    "clear.png": lambda path: Image.fromarray(np.stack([frame()] * 4, axis=-1)).save(path),
    "palette.png": lambda path: Image.fromarray(np.stack([frame()] * 3, axis=-1)).quantize(64).save(path),
    "lossy.jpeg": lambda path: Image.fromarray(frame()).save(path),
    "colors.dcm": lambda path: dicom(path, np.stack([frame()] * 3, axis=-1), "RGB"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(tiny_of("ultrabones").state_dict(), path)
    return path


def infer(source, out, weights, **settings):
    given = {"input": str(source), "output_dir": str(out), "ckpt_path": str(weights), **TINY, **settings}
    run_bundle("ultrabones", ["inference.json"], **given)


def test_bad_frames_fail_by_name_and_good_ones_are_done(tmp_path, weights, caplog, monkeypatch):
    monkeypatch.setattr(colours, "_said", set())
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, (make, _) in BAD.items():
        make(source / name)
    for name, make in GOOD.items():
        make(source / name)
    with pytest.raises(SystemExit):
        infer(source, out, weights)
    with (out / "failed.csv").open(newline="", encoding="utf-8") as file:
        reasons = {row["case"]: row["reason"] for row in csv.DictReader(file)}
    assert len(reasons) == len(BAD), reasons
    for name, (_, expected) in BAD.items():
        case = name.split(".")[0]
        failed = next((key for key in (case, f"{case}_2") if expected in reasons.get(key, "")), None)
        assert failed, name
        assert not list(out.glob(f"{failed}_*")), "a result of a case that failed"
    for name, make in GOOD.items():
        case = name.split(".")[0]
        with Image.open(out / f"{case}_seg.png") as mask:
            assert mask.size == ((7, 33) if case == "narrow" else (97, 81)), make
    assert caplog.text.count("colours are converted to gray") == 1


def test_sixteen_bits_are_read_by_their_white_as_eight(tmp_path, weights):
    for name, pixels in (("deep", frame().astype(np.uint16) * 257), ("plain", frame())):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
        infer(tmp_path / name, tmp_path / "out" / name, weights, white=255 if name == "plain" else 65535)
    one, other = (np.asarray(Image.open(tmp_path / "out" / name / "a_seg.png")) for name in ("deep", "plain"))
    np.testing.assert_array_equal(one, other)


def test_labels_without_bone_teach_no_bone_and_are_counted(tmp_path):
    """A distance transform of nothing would give false bone in a corner, and the loss NaN."""
    write_cohort(tmp_path, specimens=3, frames=2, size=(64, 64))
    for path in tmp_path.rglob("*partial_gradient.png"):
        Image.new("L", (64, 64)).save(path)
    prepare_ultrabones(tmp_path, test=[2])
    folders = {"dataset_dir": str(tmp_path), "ckpt_dir": str(tmp_path / "models")}
    training = {"max_epochs": 1, "val_interval": 1, "batch_size": 2, "output_dir": str(tmp_path / "runs")}
    run_bundle("ultrabones", ["train.json"], **TINY, **folders, **training)
    state = torch.load(tmp_path / "models" / "training_state.ckpt", weights_only=True)["network"]
    assert all(values.isfinite().all() for values in state.values())
    torch.save(state, tmp_path / "models" / "model.pt")
    scoring = {"eval_split": "test", "pixel_mm": "$[0.5, 0.5]", "output_dir": str(tmp_path / "eval")}
    run_bundle("ultrabones", ["train.json", "evaluate.json"], **TINY, **folders, **scoring)
    row = pd.read_csv(tmp_path / "eval" / "summary.csv").iloc[0]
    assert row["n"] == row["n_spurious"] + row["n_both_empty"] == 2


def refusal(tmp_path, weights, **settings):
    source = tmp_path / "a.png"
    Image.fromarray(frame()).save(source)
    message = message_of(infer, source, tmp_path / "out", weights, **settings)
    assert not (tmp_path / "out" / "a_seg.png").exists()
    return message


def test_weights_of_the_other_picture_bundle_are_refused(tmp_path, weights):
    other = tmp_path / "universeg.pt"
    torch.save(UniverSeg(features=[4, 4]).state_dict(), other)
    assert refusal(tmp_path, other).startswith(f"{other}: weights of another network:")


@pytest.mark.parametrize("size", [100, 16, 0])
def test_network_grid_is_a_multiple_of_32(tmp_path, weights, size):
    assert "image_size is" in (message := refusal(tmp_path, weights, image_size=size))
    assert "32" in message


def test_output_among_the_inputs_is_refused(tmp_path, weights):
    (tmp_path / "in").mkdir()
    shutil.copy(weights, tmp_path / "in")
    Image.fromarray(frame()).save(tmp_path / "in" / "a.png")
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its cause is checked)
        infer(tmp_path / "in", tmp_path / "in", weights)
    assert "where inputs lie" in str(root_cause(caught.value))
