"""Bad pictures among good ones, and bad support sets, through the bundle's own run."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.models.universeg import UniverSeg
from tests.conftest import TINY_OF, message_of, run_bundle
from tests.hostile.test_images import assert_failed
from tests.scripts.universeg.support_files import write_pictures

TINY = TINY_OF["universeg"]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, content):
    """Return a PNG of 8-bit gray whose pixels may be missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def frames(path):
    Image.new("L", (8, 8)).save(path, save_all=True, append_images=[Image.new("L", (8, 8), 9)])


def not_a_number(path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(path)


TOO_MANY = "has too many pixels; give a picture of at most 100000000."
ENTRY = "is a folder, a pipe or a device; give a picture."
BAD_PICTURES = {
    "empty.png": (lambda path: path.touch(), "not a picture that can be read; save it as PNG."),
    "text.png": (lambda path: path.write_text("no"), "not a picture that can be read; save it as PNG."),
    "short.png": (lambda path: path.write_bytes(png(64, 64, bytes(99))), "cannot be read whole"),
    "header.png": (lambda path: path.write_bytes(png(9000, 20000, b"")), TOO_MANY),
    "bomb.png": (lambda path: path.write_bytes(png(60000, 60000, b"")), TOO_MANY),
    "large.png": (lambda path: path.write_bytes(png(11000, 10000, b"")), "has 11000 x 10000 pixels; give"),
    "frames.tif": (frames, "has 2 frames; give one."),
    "folder.png": (lambda path: path.mkdir(), ENTRY),
    "pipe.png": (os.mkfifo, ENTRY),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), ENTRY),
    "link.png": (lambda path: path.symlink_to("none.png"), "no such file"),
    "loop.png": (lambda path: path.symlink_to(path.name), "cannot be read whole"),
    "float.tif": (not_a_number, "holds NaN or infinite voxels"),
}


@pytest.fixture(scope="module")
def ckpt_path(tmp_path_factory):
    """Random weights."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(UniverSeg(features=TINY["network_def#features"]).state_dict(), path)
    return str(path)


def infer(folder, ckpt_path, **settings):
    paths = {"input": str(folder / "in"), "support": str(folder / "support"), "output_dir": str(folder / "out")}
    run_bundle("universeg", ["inference.json"], **{**TINY, **paths, "ckpt_path": ckpt_path, **settings})


@pytest.mark.timeout(120)
def test_bad_pictures_of_a_folder_fail_and_the_others_are_segmented(tmp_path, ckpt_path):
    write_pictures(tmp_path / "support")
    source = tmp_path / "in"
    source.mkdir()
    for name, (make, _) in BAD_PICTURES.items():
        make(source / name)
    rgba = np.random.default_rng(0).integers(0, 255, (13, 9, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(source / "colours.png")
    Image.fromarray(rgba[..., 0].astype(np.uint16) * 200).save(source / "deep.png")
    Image.fromarray(np.array([[0, 7]], dtype=np.uint8)).save(source / "pixels.png")
    with pytest.raises(SystemExit):
        infer(tmp_path, ckpt_path)
    assert_failed(tmp_path / "out", {name.split(".")[0]: message for name, (_, message) in BAD_PICTURES.items()})
    good = ("colours", "deep", "pixels")
    sizes = {case: Image.open(tmp_path / "out" / f"{case}_seg.png").size for case in good}
    assert sizes == {"colours": (9, 13), "deep": (9, 13), "pixels": (2, 1)}


def traversing(support):
    (support / "data.json").write_text(json.dumps({"training": [{"image": "../secret.png", "label": "labels/p0.png"}]}))
    return support / "data.json"


def many_classes(support):
    for n in range(2):
        path = support / "labels" / f"p{n}.png"
        Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) + 1).save(path)
    return support


BAD_SUPPORT = {
    "path outside": (traversing, "../secret.png"),
    "many classes": (many_classes, "256 classes; give at most 255 at once."),
    "a picture": (lambda support: support / "images" / "p0.png", "no support; give a folder that holds the folders"),
    "binary datalist": (lambda support: (support / "images" / "p0.png").rename(support / "a.json"), "a.json: "),
    "pipe": (lambda support: [os.mkfifo(support / kind / "q.png") for kind in ("images", "labels")], ENTRY),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", BAD_SUPPORT)
def test_bad_support_is_refused_by_one_message(tmp_path, ckpt_path, kind):
    damage, message = BAD_SUPPORT[kind]
    support = write_pictures(tmp_path / "support", n=2)
    write_pictures(tmp_path / "in_of", n=1)
    Image.new("L", (24, 20), 5).save(tmp_path / "secret.png")
    changed = damage(support)
    source = str(changed) if isinstance(changed, Path) else str(support)
    images = str(tmp_path / "in_of" / "images")
    assert message in message_of(infer, tmp_path, ckpt_path, input=images, support=source)
