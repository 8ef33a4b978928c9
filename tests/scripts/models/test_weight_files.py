import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.swin_unetr import filter_swinunetr

from scripts.common.errors import InputError
from scripts.models.weight_files import load_state_dict_file, read_file
from tests.scripts.models.tiny_networks import assert_equal_states, saved, state_of


class TouchesFile:
    """Unpickled without care, it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class RunsCommand(TouchesFile):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "network", "net"])
def test_wrapped_state_dicts_are_unwrapped(tmp_path, wrapper):
    state = state_of()
    path = saved(tmp_path / "w.pt", {wrapper: state, "epoch": 3, "optimizer": {"state": {}}})
    assert_equal_states(load_state_dict_file(path), state)


@pytest.mark.parametrize("prefix", ["module.", "module.backbone.", "_orig_mod.", "_orig_mod.module.", "backbone."])
def test_prefixes_of_wrapped_networks_are_stripped(tmp_path, prefix):
    state = state_of()
    path = saved(tmp_path / "w.pt", {prefix + key: value for key, value in state.items()})
    assert_equal_states(load_state_dict_file(path), state)


def test_swin_vit_of_old_monai_is_renamed(tmp_path):
    state = state_of()
    renamed = {key.replace("swinViT", "module.swin_vit"): value for key, value in state.items()}
    assert_equal_states(load_state_dict_file(saved(tmp_path / "w.pt", renamed)), state)


def test_names_of_other_networks_are_kept(tmp_path):
    state = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "mlp": torch.nn.Linear(2, 2)}).state_dict()
    state["backbone.mlp.fc1.weight"] = torch.zeros(1)
    assert list(load_state_dict_file(saved(tmp_path / "w.pt", state))) == list(state)


def test_disruptive_autoencoder_names_are_those_of_monais_filter(tmp_path):
    state = state_of()
    names = [key.replace("swinViT.", "encoder.") for key in state if key.startswith("swinViT.")]
    deeper = [key.replace(".0.", ".0.0.", 1) if "layers" in key else key for key in names]
    path = saved(tmp_path / "w.pt", {"model": {key: torch.zeros(1) for key in deeper}})
    # MONAI's filter cuts fixed columns of the names, which spoils the two of the patch embedding
    expected = [filter_swinunetr(key, 0)[0] for key in deeper if "patch_embed" not in key]
    ours = [key for key in load_state_dict_file(path) if "patch_embed" not in key]
    assert ours == expected
    assert set(load_state_dict_file(path)) <= set(state)


def test_numpy_numbers_beside_the_weights_are_read(tmp_path):
    state = state_of()
    numbers = {"best_acc": np.float64(0.8), "loss": np.float32(0.1), "epoch": np.int64(3), "done": np.bool_(True)}
    path = saved(tmp_path / "w.pt", {"state_dict": state} | numbers)
    assert_equal_states(load_state_dict_file(path), state)


def test_numpy_numbers_keep_their_value(tmp_path):
    numbers = {"a": np.float64(0.8), "b": np.float32(0.5), "c": np.int64(-3), "d": np.bool_(True), "e": np.float16(2)}
    read = read_file(saved(tmp_path / "w.pt", numbers))
    assert read == numbers
    assert {key: type(value) for key, value in read.items()} == {
        "a": float,
        "b": float,
        "c": int,
        "d": bool,
        "e": float,
    }


@pytest.mark.parametrize("number", [np.complex128(1), np.datetime64("2026-01-01"), np.str_("x")])
def test_other_numpy_values_are_refused(tmp_path, number):
    with pytest.raises(InputError, match=r"w\.pt: (not a PyTorch checkpoint, or corrupted|holds pickled code)"):
        read_file(saved(tmp_path / "w.pt", {"x": number}))


def test_numpy_numbers_saved_with_numpy_1_are_read(tmp_path):
    state, path = state_of(), tmp_path / "w.pt"
    newer = saved(tmp_path / "newer.pt", {"state_dict": state, "best_acc": np.float64(0.8)})
    with zipfile.ZipFile(newer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, content)
    assert_equal_states(load_state_dict_file(path), state)


def test_globals_allowed_for_numpy_numbers_do_not_stay_allowed(tmp_path):
    path = saved(tmp_path / "w.pt", {"state_dict": state_of(), "best_acc": np.float64(0.8)})
    before = set(torch.serialization.get_safe_globals())
    assert np.dtype not in before
    load_state_dict_file(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_globals_that_were_allowed_before_stay_allowed(tmp_path):
    path = saved(tmp_path / "w.pt", state_of())
    with torch.serialization.safe_globals([np.dtype]):
        load_state_dict_file(path)
        assert np.dtype in torch.serialization.get_safe_globals()


CORRUPTED = "not a PyTorch checkpoint, or corrupted: download or save it again."
NO_WEIGHTS = "holds no weights: give a file of torch.save(network.state_dict(), path)."
PICKLED_CODE = (
    "holds pickled code (torch.nn.modules.linear.Linear), refused because loading it could execute code: if you "
    "trust its source, save only its state dict and give that file."
)
TORCHSCRIPT = "is a TorchScript archive: give the file of weights, model.pt."


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "is empty: download or save it again.", id="empty"),
        pytest.param(lambda path: path.write_text("case,organ\np1,liver\n"), CORRUPTED, id="text with c"),
        pytest.param(
            lambda path: path.write_text("<html>404: not found</html>\n" * 40),
            "is a web page: download the file itself.",
            id="web page",
        ),
        pytest.param(
            lambda path: path.write_bytes(saved(path, state_of()).read_bytes()[:5000]), CORRUPTED, id="cut off"
        ),
        pytest.param(lambda path: saved(path, [torch.zeros(2)]), NO_WEIGHTS, id="list"),
        pytest.param(lambda path: saved(path, torch.zeros(2)), NO_WEIGHTS, id="tensor"),
        pytest.param(lambda path: saved(path, {"epoch": 3, "best_acc": 0.5}), NO_WEIGHTS, id="no tensors"),
        pytest.param(lambda path: saved(path, {"state_dict": {}}), NO_WEIGHTS, id="empty dict"),
        pytest.param(lambda path: saved(path, torch.nn.Linear(2, 2)), PICKLED_CODE, id="module"),
        pytest.param(lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), TORCHSCRIPT, id="TorchScript"),
        pytest.param(lambda path: None, "no such file: give the path of the weights.", id="missing"),
        pytest.param(lambda path: path.mkdir(), "not a file: give the path of the weights.", id="folder"),
    ],
)
def test_file_without_weights_is_refused(tmp_path, write, message):
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_state_dict_file(path)


@pytest.mark.parametrize("kind", [TouchesFile, RunsCommand])
def test_pickled_code_is_refused_and_not_run(tmp_path, kind):
    touched = tmp_path / "touched"
    path = saved(tmp_path / "w.pt", {"state_dict": state_of(), "best_acc": kind(touched)})
    with pytest.raises(InputError, match=r"w\.pt: holds pickled code \([\w.]+\), refused because"):
        load_state_dict_file(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists(), "the file is harmless, so the test proves nothing"


def test_damaged_numpy_number_is_refused_and_does_not_crash_the_process(tmp_path):
    """NumPy's own unpickling of this number is a segmentation fault."""
    path = tmp_path / "w.pt"
    source = saved(tmp_path / "good.pt", {"state_dict": state_of(), "best_acc": np.float64(0.8)})
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(path, "w") as damaged:
        for name in good.namelist():
            damaged.writestr(name, good.read(name).replace(b"NNNJ\xff\xff\xff\xffJ", b"NJ\xff\xff\xff\xffJ"))
    assert_equal_states(load_state_dict_file(path), state_of())


def test_entry_marked_as_a_folder_is_refused(tmp_path):
    """torch reads nothing from it, and takes the tensor's values from whatever is in memory."""
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(saved(tmp_path / "good.pt", state_of())) as good, zipfile.ZipFile(path, "w") as damaged:
        for entry in good.infolist():
            content = good.read(entry)
            entry.external_attr = 0x10 if entry.filename.endswith("data/1") else 0
            damaged.writestr(entry, content)
    with pytest.raises(InputError, match=r"w\.pt: not a PyTorch checkpoint, or corrupted"):
        load_state_dict_file(path)


def test_every_flipped_byte_of_an_archive_is_found_or_harmless(tmp_path):
    state = {"a": torch.arange(40.0), "b": torch.arange(3)}
    data, path, found = saved(tmp_path / "good.pt", state).read_bytes(), tmp_path / "w.pt", 0
    for at in range(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            assert_equal_states(load_state_dict_file(path), state)
        except InputError:
            found += 1
    assert found > 200


def test_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch):
    path = saved(tmp_path / "w.pt", state_of())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"w\.pt: cannot be read \(Permission denied\): give the path of the weights"):
        load_state_dict_file(path)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_file_larger_than_the_memory_is_not_called_corrupted(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    path = saved(tmp_path / "w.pt", state_of())
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InputError, match=r"w\.pt: needs more memory than there is, or is corrupted: download it again"):
        load_state_dict_file(path)
