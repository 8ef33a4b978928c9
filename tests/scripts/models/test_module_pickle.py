"""Reading pickled modules, among them files that try to run code."""

import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from scripts.common.errors import InputError
from scripts.models.module_pickle import load_module_file
from tests.scripts.models.tiny_networks import saved


class Foreign(nn.Module):
    """A module of a class that the reader does not know, with all that modules hold."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.options = {"name": "foreign", "sizes": [1, 2], "marks": {1, 2}}
        self.short = nn.Parameter(torch.rand(3).half())
        self.turned = nn.Parameter(torch.rand(2, 3).T)
        self.shared = self.short
        self.frozen = nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_buffer("counts", torch.arange(4))
        self.register_buffer("transient", torch.rand(2), persistent=False)
        self.register_buffer("none", None)
        self.register_parameter("no_parameter", None)
        self.hooks = [self.layers.register_forward_hook(hook)]


def hook(*_):
    raise AssertionError("code of the file ran")


class Hostile:
    """Becomes a call of anything when it is unpickled as usual."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def archive_of(path, content, **entries):
    """Write a file as `torch.save` does, of a pickle given as bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in {"data.pkl": content, "version": b"3\n", **entries}.items():
            archive.writestr(f"archive/{name}", value)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_of_a_pickled_module_is_read_without_its_class(tmp_path, monkeypatch, protocol):
    torch.manual_seed(0)
    module = Foreign().train()
    torch.save(module, tmp_path / "epoch_1.pth", pickle_protocol=protocol)
    expected = module.state_dict()
    monkeypatch.delattr(f"{__name__}.Foreign")
    monkeypatch.delattr(f"{__name__}.hook")
    state = load_module_file(tmp_path / "epoch_1.pth")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in expected.items())


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_state_dicts_and_checkpoints_of_lightning_are_read(tmp_path, kind):
    state = kind({"a.weight": torch.rand(2, 3), "a.bias": nn.Parameter(torch.rand(2))})
    lightning = {"epoch": 3, "state_dict": kind({f"model.{name}": value for name, value in state.items()})}
    for path in (saved(tmp_path / "plain.pt", state), saved(tmp_path / "epoch=3.ckpt", lightning)):
        read = load_module_file(path)
        assert list(read) == list(state)
        assert all(torch.equal(read[name], value) for name, value in state.items())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "function", [os.system, exec, eval, subprocess.check_call, os.mkdir, pickle.loads, torch.load, getattr, print]
)
def test_code_of_a_hostile_file_never_runs(tmp_path, monkeypatch, function, protocol):
    """The call makes a folder where it can; the weights beside it are read all the same."""
    monkeypatch.chdir(tmp_path)
    arguments = {exec: "import os; os.mkdir('ran')", eval: "__import__('os').mkdir('ran')", os.system: "mkdir ran"}
    arguments[subprocess.check_call] = ["mkdir", "ran"]
    module = nn.Linear(2, 1)
    module.extra = Hostile(function, arguments.get(function, "ran"))
    torch.save(module, "hostile.pth", pickle_protocol=protocol)
    state = load_module_file("hostile.pth")
    assert torch.equal(state["weight"], module.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


def test_a_hostile_file_can_run_code_where_it_is_loaded_as_usual(tmp_path, monkeypatch):
    """So that the test above tests something."""
    monkeypatch.chdir(tmp_path)
    torch.save([Hostile(os.mkdir, "ran")], "hostile.pth")
    torch.load("hostile.pth", weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_a_hostile_file_cannot_change_functions_of_torch(tmp_path):
    """BUILD with a pair sets attributes of what GLOBAL returned."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    content = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}U\x0c__defaults__K\x01stb."
    with pytest.raises(InputError, match="not a PyTorch checkpoint, or corrupted"):
        load_module_file(archive_of(tmp_path / "hostile.pth", content))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def nested(depth):
    """A module that contains the same module twice, and so on: 2 to the power of the depth."""
    module = nn.Module()
    for _ in range(depth):
        outer = nn.Module()
        outer.a = outer.b = module
        module = outer
    return module


def endless():
    module = nn.Module()
    module._modules["again"] = module
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: saved(path, nested(60)), "more than 2000 modules"),
        (lambda path: saved(path, endless()), "more than 2000 modules"),
        (lambda path: saved(path, nn.ReLU()), r"holds no weights: give a file of torch.save\(network, path\)"),
        (lambda path: saved(path, [1, "text"]), "holds no weights"),
        (lambda path: path, "no such file: give the path of the weights"),
        (lambda path: path.write_bytes(b"\x80\x02cos\nsystem\n.") and path, "not a file of torch.save by PyTorch 1.6"),
        (lambda path: archive_of(path, b"\x80\x02."), "not a PyTorch checkpoint, or corrupted"),
        (lambda path: archive_of(path, b"\x80\x02}.", **{"constants.pkl": b""}), "a TorchScript archive"),
        (lambda path: archive_of(path, b"\x80\x02}.", byteorder=b"big"), "not little-endian"),
    ],
)
def test_bad_files_have_one_clear_error(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        load_module_file(make(tmp_path / "model.pth"))


def tensor_pickle(*, size=(2,), strides=(1,), offset=0, key="0", kind="FloatStorage"):
    """A pickle of {"a": tensor}, with the parts of the tensor as given."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", getattr(torch, kind), key, "cpu", 2) if value == "values" else None

    class Rebuilt:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, ("values", offset, size, strides, False, OrderedDict())

    Writer(buffer := io.BytesIO(), protocol=2).dump({"a": Rebuilt()})
    return buffer.getvalue()


def test_tensors_that_reach_beyond_their_values_are_refused(tmp_path):
    values = {"data/0": b"\0\0\x80\x3f\0\0\0\x40"}
    whole = load_module_file(archive_of(tmp_path / "whole.pth", tensor_pickle(), **values))
    assert whole["a"].tolist() == [1.0, 2.0]
    parts = [{"size": (3,)}, {"offset": 1}, {"strides": (2,)}, {"strides": (-1,)}, {"key": "1"}, {"key": "../0"}]
    for number, part in enumerate([*parts, {"kind": "ComplexFloatStorage"}, {"offset": -1}]):
        with pytest.raises(InputError, match="not a PyTorch checkpoint, or corrupted"):
            load_module_file(archive_of(tmp_path / f"{number}.pth", tensor_pickle(**part), **values))
