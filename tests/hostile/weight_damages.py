"""Files that are given as weights and are none, or none of this network: name to a function that writes one.

Each function takes the path and a state dict: that of the network for `TENSORS`, any for `FILES`.
"""

import gzip
import io
import os
import pickle
import zipfile

import torch


def rezipped(content, *, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    """Return what torch.save writes, with its entries written anew."""
    buffer, target = io.BytesIO(), io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for name in source.namelist():
            archive.writestr(name, change(name, source.read(name)))
    return target.getvalue()


def with_entry(content, name):
    """Return a checkpoint with one more entry in its archive."""
    buffer = io.BytesIO(rezipped(content))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def with_flipped_byte(data, at):
    """Return bytes of which one differs."""
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def announcing_more(name, data):
    """Let the tensors of a checkpoint be views of one value in shapes of a thousand million."""
    return data.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b") if name.endswith("data.pkl") else data


def nested(content, depth):
    for _ in range(depth):
        content = {"state_dict": content}
    return content


def in_itself():
    content = {}
    content["state_dict"] = content
    return content


def key_of(state):
    """Return the name of a tensor of floating-point numbers."""
    return next(key for key, tensor in state.items() if tensor.is_floating_point())


def changed(change):
    """Return a function that writes a state dict of which one tensor is changed."""

    def write(path, state):
        key = key_of(state)
        torch.save({**state, key: change(state[key])}, path)

    return write


def saved(change, **options):
    return lambda path, state: torch.save(change(state), path, **options)


def cut(keep, **options):
    def write(path, state):
        torch.save(state, path, **options)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return write


def plain(data):
    return lambda path, state: path.write_bytes(data)


class _Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


CORRUPTED = "not a PyTorch checkpoint, or corrupted: download or save it again."
NO_WEIGHTS = "holds no weights: give a file of torch.save(network.state_dict(), path)."
KIND = "is sparse, quantized, nested or without values"
NAME = "has a name that no network gives"

FILES = {
    "missing": (lambda path, state: None, "no such file: give the path of the weights."),
    "folder": (lambda path, state: path.mkdir(), "not a file: give the path of the weights."),
    "pipe": (lambda path, state: os.mkfifo(path), "not a file: give the path of the weights."),
    "link to nothing": (lambda path, state: path.symlink_to("none"), "no such file: give the path of the weights."),
    "link to itself": (lambda path, state: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
    "empty": (plain(b""), "is empty: download or save it again."),
    "web page": (plain(b"\n<!DOCTYPE html><title>404</title>"), "is a web page: download the file itself."),
    "pointer of Git LFS": (
        plain(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"),
        "is a pointer of Git LFS, not the file that it stands for: run git lfs pull.",
    ),
    "safetensors": (
        plain(b'\x3a\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    \0\0\0\0'),
        "is a safetensors file: save what safetensors.torch.load_file reads from it with torch.save.",
    ),
    "text": (plain(b"case,organ\np1,liver\n"), CORRUPTED),
    "zeros": (plain(bytes(100_000)), CORRUPTED),
    "gzip": (plain(gzip.compress(b"weights")), CORRUPTED),
    "pickle": (plain(pickle.dumps({"a": 1.5})), CORRUPTED),
    "deep pickle": (plain(b"\x80\x02" + b"(" * 100_000 + b"."), CORRUPTED),
    "empty zip": (plain(b"PK\x05\x06" + bytes(18)), CORRUPTED),
    "other zip": (plain(with_entry({}, "x").replace(b"data.pkl", b"data.txt")), CORRUPTED),
    "first half": (cut(0.5), CORRUPTED),
    "all but the end": (cut(0.99), CORRUPTED),
    "first half of the old format": (cut(0.5, _use_new_zipfile_serialization=False), CORRUPTED),
    "start of the old format": (cut(0.005, _use_new_zipfile_serialization=False), CORRUPTED),
    "flipped byte": (
        lambda path, state: path.write_bytes(with_flipped_byte(d := rezipped(state), len(d) // 2)),
        CORRUPTED,
    ),
    "zip bomb": (
        lambda path, state: path.write_bytes(rezipped({"a": torch.zeros(1 << 22)}, compression=zipfile.ZIP_DEFLATED)),
        CORRUPTED,
    ),
    "more announced than stored": (
        lambda path, state: path.write_bytes(rezipped({"a": torch.zeros(1000)}, change=announcing_more)),
        CORRUPTED,
    ),
    "entry outside of the archive": (
        lambda path, state: path.write_bytes(with_entry(state, "../../evil")),
        CORRUPTED,
    ),
    "entry twice": (
        lambda path, state: path.write_bytes(with_entry(state, "archive/data.pkl")),
        CORRUPTED,
    ),
    "TorchScript": (
        lambda path, state: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
        "is a TorchScript archive: give the file of weights, model.pt.",
    ),
    "pickled code": (saved(lambda state: {"state_dict": state, "x": _Code()}), "holds pickled code (posix.system)"),
    "pickled network": (saved(lambda state: torch.nn.Linear(2, 2)), "holds pickled code (torch.nn.modules.linear"),
    "list": (saved(lambda state: [state]), NO_WEIGHTS),
    "tensor": (saved(lambda state: torch.zeros(3)), NO_WEIGHTS),
    "no tensors": (saved(lambda state: {"epoch": 3}), NO_WEIGHTS),
    "empty dict": (saved(lambda state: {"state_dict": {}}), NO_WEIGHTS),
    "in itself": (saved(lambda state: in_itself()), NO_WEIGHTS),
    "nested deeply": (saved(lambda state: nested(state, 300)), NO_WEIGHTS),
    "numbers as names": (saved(lambda state: dict(enumerate(state.values()))), f"tensor 0 {NAME}"),
    "lines in a name": (saved(lambda state: {**state, "a\n\x1b[2Jb": torch.zeros(1)}), f"'a\\n\\x1b[2Jb' {NAME}"),
    "two for one name": (
        saved(lambda state: {**state, f"module.{key_of(state)}": torch.zeros(1)}),
        "is the second one for ",
    ),
    "one tensor": (saved(lambda state: {"a": torch.zeros(1)}), "weights of another network: "),
    "an optimizer": (saved(lambda state: {"optimizer": {"state": {0: {"a": torch.zeros(1)}}}}), NO_WEIGHTS),
}
"""What is in the file is no set of weights, or of another network."""

TENSORS = {
    "one too many": (saved(lambda state: {**state, "a": torch.zeros(1)}), "tensors missing, 1 unexpected"),
    "one missing": (
        saved(lambda state: {key: tensor for key, tensor in state.items() if key != key_of(state)}),
        "weights of another network: 1 of ",
    ),
    "one value": (changed(lambda t: torch.tensor(1.0)), "1 of another shape (first: "),
    "transposed": (changed(lambda t: t.flatten()[None]), "1 of another shape (first: "),
    "int32": (changed(lambda t: t.nan_to_num().int()), "is of torch.int32, the network's of torch.float"),
    "bool": (changed(lambda t: t.bool()), "is of torch.bool, the network's of torch.float"),
    "complex": (changed(lambda t: t.to(torch.complex64)), "is of torch.complex64, the network's of torch.float"),
    "quantized": (
        changed(lambda t: torch.quantize_per_tensor(t.float().nan_to_num(0, 0, 0), 0.1, 0, torch.qint8)),
        KIND,
    ),
    "sparse": (changed(lambda t: t.to_sparse()), KIND),
    "compressed sparse": (changed(lambda t: torch.eye(2).to_sparse_csr()), KIND),
    "meta": (changed(lambda t: t.to("meta")), KIND),
    "nested": (changed(lambda t: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])), KIND),
    "expanded": (changed(lambda t: torch.zeros(1, dtype=t.dtype).expand(t.shape)), "repeats few values in a shape of "),
    "huge by repetition": (
        changed(lambda t: torch.zeros(1).expand(1 << 20, 1 << 20)),
        "repeats few values in a shape of (1048576, 1048576)",
    ),
}
"""A tensor is not what the network's is."""
