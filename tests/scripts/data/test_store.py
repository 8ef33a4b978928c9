import builtins
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.data.store import (
    MAX_BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    ChunkedVolume,
    block_and_chunk,
    case_bytes,
    import_blosc2,
    read_case,
    read_volumes,
    write_case,
)

OBLIQUE = torch.tensor([[-2, 0.3, 0, 5], [0.3, 1.5, 0.2, 6], [0, 0.1, 3, 7], [0, 0, 0, 1.0]], dtype=torch.float64)
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
DTYPES += [torch.float16, torch.float32, torch.float64]


def stored(value, tmp_path, *, mmap=True):
    write_case({"image": value}, tmp_path / "case.pt")
    return read_case(tmp_path / "case.pt", ["image"], mmap=mmap, verify=True)["image"]


def bits(tensor):
    return tensor.numpy().view(np.uint8)


def draw(dtype, shape=(2, 40, 37, 5)):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1000, shape)
    return torch.from_numpy(values % 256 if not dtype.is_floating_point else values).to(dtype)


# Values, metadata and files


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_every_type_come_back_exactly(dtype, mmap, tmp_path):
    values = draw(dtype)
    volume = stored(values, tmp_path, mmap=mmap)
    assert isinstance(volume, ChunkedVolume)
    assert volume.read().dtype == dtype
    assert np.array_equal(bits(volume.read()), bits(values))
    part = volume.part([slice(3, 38), slice(0, 37), slice(4, 5)])
    assert part.dtype == dtype
    assert torch.equal(part, values[:, 3:38, :, 4:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 0.5, 2.0**40])
def test_whole_numbers_beside_others_are_kept_to_the_bit(dtype, special, tmp_path):
    values = torch.arange(-20, 40, dtype=dtype).reshape(1, 3, 4, 5).clone()
    values[0, 1, 2, 3] = special
    assert np.array_equal(bits(stored(values, tmp_path).read()), bits(values))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (torch.arange(24.0), "uint8"),
        (torch.arange(24.0) - 1024, "int16"),
        (torch.arange(24.0, dtype=torch.float64) * 1e6, "int32"),
        (torch.arange(24, dtype=torch.int64), "uint8"),
        (torch.arange(24.0) + 0.5, "float32"),
        (torch.arange(24.0, dtype=torch.float64) + 0.5, "float64"),
        (torch.arange(24) > 3, "bool"),
    ],
)
def test_whole_numbers_are_stored_as_the_smallest_integers(values, dtype, tmp_path):
    volume = stored(values.reshape(1, 2, 3, 4), tmp_path)
    assert import_blosc2().open(str(volume.path), mode="r").dtype == dtype


def test_metadata_comes_back(tmp_path):
    meta = {"filename_or_obj": "a.nii.gz", "spatial_shape": np.array([3, 4, 5]), "space": "RAS"}
    image = MetaTensor(torch.rand(2, 3, 4, 5), affine=OBLIQUE, meta=meta)
    image.applied_operations = [{"class": "Flip", "orig_size": (3, 4, 5)}]
    write_case({"image": image, "case": "a", "spacing": torch.ones(3)}, tmp_path / "case.pt")
    case = read_volumes(read_case(tmp_path / "case.pt", ["image"], mmap=True, verify=True))
    assert type(case["image"]) is MetaTensor
    assert torch.equal(case["image"].as_tensor(), image.as_tensor())
    assert torch.equal(case["image"].affine, OBLIQUE)
    assert case["image"].applied_operations == image.applied_operations
    assert case["image"].meta["filename_or_obj"] == "a.nii.gz"
    assert (case["case"], case["spacing"].tolist()) == ("a", [1, 1, 1])


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3, 4),
        torch.ones(1, 2, 3),
        torch.ones(1, 0, 3, 4),
        torch.ones((1, 2, 3, 4), dtype=torch.bfloat16),
        torch.ones((1, 2, 3, 4), dtype=torch.complex64),
    ],
)
def test_other_tensors_are_kept_beside_the_volumes(value, tmp_path):
    found = stored(value, tmp_path)
    assert torch.equal(found, value)
    assert [path.name for path in tmp_path.iterdir()] == ["case.pt"]


def test_parts_of_a_larger_tensor_and_other_orders_of_axes_are_stored_by_value(tmp_path):
    whole = torch.rand(2, 30, 31, 32)
    for view in (whole[:1, 3:20], whole.permute(0, 3, 2, 1), whole.flip(1)):
        assert torch.equal(stored(view, tmp_path).read(), view)


def test_size_of_a_case_is_that_of_its_files(tmp_path):
    stored(torch.rand(1, 20, 20, 20), tmp_path)
    (tmp_path / "case2.pt").write_bytes(b"123")
    assert case_bytes(tmp_path / "case.pt") == sum(path.stat().st_size for path in tmp_path.glob("case.*"))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_volume_that_is_damaged_after_its_check_is_named(damage, mmap, tmp_path):
    volume = stored(torch.rand(1, 20, 20, 20), tmp_path, mmap=mmap)
    whole = volume.path.read_bytes()
    volume.path.unlink()
    if damage == "cut":
        volume.path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=rf"^{re.escape(str(volume.path))}: cannot be read \(.*\); run again"):
        volume.read()


def test_missing_blosc2_says_what_to_do(monkeypatch):
    original = builtins.__import__

    def refuse(name, *rest):
        if name == "blosc2":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="pip install blosc2, or set dataset to cache or plain"):
        import_blosc2()


# Blocks and chunks


@pytest.mark.parametrize(
    ("shape", "item_bytes", "block", "chunk"),
    [
        ((4, 224, 174, 370), 4, (1, 32, 32, 32), (1, 96, 128, 128)),
        ((1, 224, 174, 370), 1, (1, 48, 52, 52), (1, 192, 156, 208)),
        ((1, 512, 512, 5), 2, (1, 112, 116, 5), (1, 512, 512, 5)),
        ((4, 3, 3, 3), 4, (1, 3, 3, 3), (1, 3, 3, 3)),
        ((1, 1, 1, 1), 8, (1, 1, 1, 1), (1, 1, 1, 1)),
    ],
)
def test_blocks_and_chunks_of_known_shapes(shape, item_bytes, block, chunk):
    found = block_and_chunk(shape, item_bytes)
    assert found[0] == block
    assert found[1] == chunk


@pytest.mark.parametrize("item_bytes", [1, 2, 4, 8])
def test_blocks_and_chunks_keep_to_their_limits_and_touch_them(item_bytes):
    rng = np.random.default_rng(0)
    for shape in rng.integers(1, 400, (200, 4)):
        block, chunk = block_and_chunk(shape.tolist(), item_bytes)
        assert np.prod(block) * item_bytes <= MAX_BLOCK_BYTES
        assert np.prod(chunk) * item_bytes <= MAX_CHUNK_BYTES
        assert np.prod(block) * item_bytes > MAX_BLOCK_BYTES // 3 or (np.array(block[1:]) + 4 > shape[1:]).any()


def test_a_crop_reads_a_small_share_of_a_file(tmp_path, monkeypatch):
    """Bytes that the C library reads, without a memory map."""
    rng = np.random.default_rng(0)
    volume = stored(torch.from_numpy(rng.normal(size=(1, 160, 160, 160)).astype(np.float32)), tmp_path, mmap=False)

    def read_bytes():
        return int(Path("/proc/self/io").read_text().split()[1])

    volume.part([slice(0, 1)] * 3)
    before = read_bytes()
    volume.part([slice(0, 32)] * 3)
    assert read_bytes() - before < volume.path.stat().st_size / 20
