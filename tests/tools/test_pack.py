import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from scripts.common.errors import InputError
from scripts.solf.filter import LabelFilter
from tools import pack as pack_module
from tools.pack import ROOT, main, named_modules, pack, packed_modules
from tools.verify import verify


def names(files):
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_modules_are_followed_through_their_imports():
    assert names(packed_modules(["scripts.io.writing.SaveLabelMapd"])) == {
        "scripts/__init__.py",
        "scripts/common/__init__.py",
        "scripts/common/assets/settings.json",
        "scripts/common/command_line.py",
        "scripts/common/errors.py",
        "scripts/common/files.py",
        "scripts/common/label_maps.py",
        "scripts/common/names.py",
        "scripts/common/settings.py",
        "scripts/io/__init__.py",
        "scripts/io/writing.py",
    }


def test_targets_at_any_depth_name_modules_and_prose_does_not():
    config = {
        "a": [{"_target_": "scripts.io.loading.LoadVolumed", "_desc_": "unlike scripts.brats.loading"}],
        "loss#_target_": "scripts.training.losses.MaskedDiceCELoss",
        "b": {"_target_": "SwinUNETR", "c": {"_target_": "scripts.common.flags.parse_flag"}},
    }
    assert named_modules(config) == {
        "scripts.io.loading.LoadVolumed",
        "scripts.training.losses.MaskedDiceCELoss",
        "scripts.common.flags.parse_flag",
    }


@pytest.mark.parametrize(
    "name",
    [
        "scripts.none.Thing",
        "scripts.io.writing.NoSuchClass",
        "scripts.io",
        "scripts./etc/passwd",
        "scripts.../tools.pack",
    ],
)
def test_module_or_class_that_does_not_exist_is_refused(name):
    with pytest.raises(InputError, match=f"^{re.escape(name)}: not found below scripts; correct the config"):
        packed_modules([name])


def test_modules_in_expressions_are_packed_too():
    assert named_modules({"a": "$scripts.common.names.stem(@x)", "b": "scripts.io is prose"}) == {
        "scripts.common.names.stem"
    }


@pytest.mark.parametrize(
    ("bundle", "absent"),
    [
        ("swin_bob_btcv", ("scripts/brats", "scripts/solf/report", "solf/workflow", "scripts/cohort", "prepare_brats")),
        ("swin_bob_brats", ("scripts/solf", "scripts/cohort", "btcv")),
        ("swin_bob_pretrain", ("scripts/brats", "scripts/solf/report", "solf/workflow", "btcv")),
        ("ultrabones", ("scripts/brats", "scripts/etta", "scripts/solf", "swin_unetr", "scripts/universeg", "btcv")),
        ("universeg", ("scripts/brats", "scripts/etta", "scripts/solf", "swin_unetr", "scripts/pretrain", "btcv")),
        ("segvol", ("scripts/brats", "scripts/etta", "scripts/solf", "scripts/universeg", "btcv")),
        ("solf_filter", ("scripts/brats", "scripts/etta", "swin_unetr", "scripts/training", "scripts/io/dicom.py")),
    ],
)
def test_a_bundle_holds_nothing_of_another(bundle, absent, tmp_path):
    with zipfile.ZipFile(pack(ROOT / "bundles" / bundle, tmp_path)) as archive:
        packed = [name.removeprefix(f"{bundle}/") for name in archive.namelist()]
    assert not [name for name in packed if name.startswith("scripts") and any(part in name for part in absent)]


def test_documented_commands_are_packed_and_run(tmp_path):
    for bundle in (path for path in (ROOT / "bundles").iterdir() if path.is_dir()):
        with zipfile.ZipFile(pack(bundle, tmp_path)) as archive:
            archive.extractall(tmp_path)
        for command in json.loads((bundle / "configs" / "metadata.json").read_text())["command_modules"]:
            run = [sys.executable, "-m", command, "--help"]
            done = subprocess.run(run, cwd=tmp_path / bundle.name, capture_output=True, text=True)
            assert f"python -m {command}" in done.stdout, done.stderr


def test_assets_are_packed_with_their_modules():
    """The report's page and style are not Python, and needed all the same."""
    found = {Path(name).name for name in names(packed_modules(["scripts.solf.report.write"]))}
    assert {"index.html", "report.css", "core.js"} <= found
    assert "index.html" not in {Path(name).name for name in names(packed_modules(["scripts.solf.features"]))}


@pytest.fixture
def bundle(tmp_path):
    """A copy of the filter's bundle, whose network is small."""
    folder = tmp_path / "solf_filter"
    shutil.copytree(ROOT / "bundles" / "solf_filter", folder, symlinks=True, ignore=shutil.ignore_patterns("runs"))
    (folder / "models").mkdir(exist_ok=True)
    return folder


def fitted_state():
    network = LabelFilter()
    network.voting[:3], network.votes[...] = True, 2
    return network.state_dict()


def test_weights_are_packed_only_when_asked(bundle, tmp_path):
    torch.save(fitted_state(), bundle / "models" / "model.pt")
    for weights in (True, False):
        with zipfile.ZipFile(pack(bundle, tmp_path, weights=weights)) as archive:
            assert ("solf_filter/models/model.pt" in archive.namelist()) is weights


def test_weights_of_a_file_are_packed_as_those_of_the_bundle(tmp_path):
    torch.save(fitted_state(), tmp_path / "fitted.pt")
    options = ["solf_filter", "--out", str(tmp_path), "--weights-file", str(tmp_path / "fitted.pt")]
    assert main(options) == 0
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("solf_filter/models/model.pt") == (tmp_path / "fitted.pt").read_bytes()
    assert verify(path) == []


def test_training_spectrum_is_packed_with_the_weights_that_it_lies_beside(bundle, tmp_path):
    metadata(bundle, training_spectrum="models/spectrum.json")
    torch.save(fitted_state(), bundle / "models" / "model.pt")
    for there in (False, True):
        if there:
            (bundle / "models" / "spectrum.json").write_text("{}")
        for weights in (True, False):
            with zipfile.ZipFile(pack(bundle, tmp_path, weights=weights)) as archive:
                found = f"{bundle.name}/models/spectrum.json" in archive.namelist()
                assert found is (there and weights)


def test_weights_of_a_file_need_one_bundle_and_must_be_there(tmp_path, caplog):
    assert main(["--out", str(tmp_path / "out"), "--weights-file", "x.pt"]) == 2
    assert main(["solf_filter", "--out", str(tmp_path / "out"), "--weights-file", "x.pt"]) == 2
    assert caplog.messages[0] == "error: x.pt: weights of one bundle; give its name alone."
    assert caplog.messages[1].endswith("x.pt: missing")


def test_folder_that_is_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no configs/metadata.json, so this is not a bundle"):
        pack(tmp_path, tmp_path)


def metadata(bundle, **changes):
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config(bundle, text):
    (bundle / "configs" / "train.json").write_text(text)


TRAIN, METADATA = "configs/train.json", "configs/metadata.json"
DAMAGES = {
    "version out of the folder": (
        lambda b: metadata(b, version="../../evil"),
        f"{METADATA}: version is '../../evil', need one such as 1.2.3",
    ),
    "version is a number": (lambda b: metadata(b, version=1.2), f"{METADATA}: version is 1.2, need one such as 1.2.3"),
    "no version": (lambda b: metadata(b, version=None), f"{METADATA}: version is None, need one such as 1.2.3"),
    "no commands": (
        lambda b: metadata(b, command_modules=None),
        f"{METADATA}: command_modules is None, need a list of modules",
    ),
    "command elsewhere": (
        lambda b: metadata(b, command_modules=["os.system"]),
        f"{METADATA}: command_modules is ['os.system'], need a list of modules",
    ),
    "command that does not exist": (
        lambda b: metadata(b, command_modules=["scripts.none"]),
        f"{METADATA}: scripts.none: not found below scripts; correct the config or command_modules",
    ),
    "metadata is a list": (
        lambda b: (b / METADATA).write_text("[]"),
        f"{METADATA}: not a mapping of names to settings",
    ),
    "broken JSON": (lambda b: config(b, "{"), f"{TRAIN}: not JSON (JSONDecodeError: Expecting property name"),
    "binary config": (lambda b: (b / TRAIN).write_bytes(b"\xff\xfe"), f"{TRAIN}: not JSON (UnicodeDecodeError:"),
    "deep JSON": (lambda b: config(b, "[" * 100_000), f"{TRAIN}: not JSON (RecursionError:"),
    "module that does not exist": (
        lambda b: config(b, '{"a": {"_target_": "scripts.none.Thing"}}'),
        f"{TRAIN}: scripts.none.Thing: not found below scripts",
    ),
    "link out of the bundle": (
        lambda b: (b / "docs" / "more.md").symlink_to("/etc/hostname"),
        "docs/more.md: a link to a file outside of the bundle",
    ),
    "page that links elsewhere": (
        lambda b: (b / "docs" / "more.md").write_text("[x](../../../README.md) [y](README.md#top) [z](https://x.org)"),
        "docs/more.md: links to ../../../README.md, which is not packed",
    ),
    "name with a newline": (lambda b: (b / "docs" / "a\nb").touch(), "docs/a\\nb: a name that cannot be printed"),
    "no licence": (lambda b: (b / "LICENSE").unlink(), "LICENSE: missing"),
    "no page": (lambda b: (b / "docs" / "README.md").unlink(), "docs/README.md: missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundle_is_refused_and_nothing_is_written(bundle, tmp_path, damage):
    change, message = DAMAGES[damage]
    change(bundle)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        pack(bundle, tmp_path / "out")
    assert str(caught.value).startswith(f"{bundle}: 1 problem; nothing was packed, correct these files\n")
    assert not (tmp_path / "out").exists()


def test_all_problems_of_a_bundle_are_named(bundle, tmp_path):
    metadata(bundle, version="x", command_modules=3)
    config(bundle, "{")
    (bundle / "LICENSE").unlink()
    with pytest.raises(InputError, match="4 problems; nothing was packed"):
        pack(bundle, tmp_path)


def other_state():
    return fitted_state() | {"votes": torch.tensor(9)}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "models/model.pt: missing"),
        (lambda path: path.write_bytes(b"weights"), "model.pt: not a PyTorch checkpoint, or corrupted"),
        (
            lambda path: torch.save({"a": torch.zeros(1)}, path),
            "model.pt: weights of another network: 17 of 17 tensors",
        ),
        (lambda path: torch.save(other_state(), path), "not the thresholds of a fit: votes is 9 for 3 voting features"),
    ],
)
def test_weights_that_do_not_load_are_refused(bundle, tmp_path, write, message):
    write(bundle / "models" / "model.pt")
    with pytest.raises(InputError, match=re.escape(message)):
        pack(bundle, tmp_path / "out", weights=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["solf_filter", "nope"],
            "error: nope: no such bundle; give some of segvol, solf_filter, swin_bob_brats, swin_bob_btcv, "
            "swin_bob_pretrain, ultrabones, universeg",
        ),
        (["../tests"], "error: ../tests: no such bundle; give some of"),
        (["solf_filter", "--out", str(ROOT / "LICENSE")], "LICENSE: cannot be written (File exists); set another out"),
    ],
)
def test_bad_arguments_end_with_2_and_one_message(tmp_path, caplog, arguments, message):
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    assert len(caplog.messages) == 1
    assert message in caplog.messages[0]
    assert not (tmp_path / "out").exists()


def test_interrupt_while_a_zip_is_open_ends_with_130_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    """zipfile then raises a ValueError, because it cannot close the archive."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile._ZipWriteFile, "write", interrupt)
    assert main(["solf_filter", "--out", str(tmp_path / "out")]) == 130
    assert caplog.messages == ["stopped; run again"]
    assert not (tmp_path / "out").exists()


def test_missing_weights_of_all_bundles_are_named_before_one_is_packed(tmp_path, caplog, monkeypatch):
    shutil.copytree(
        ROOT / "bundles", tmp_path / "bundles", symlinks=True, ignore=shutil.ignore_patterns("models", "runs")
    )
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.setattr(pack_module, "ROOT", tmp_path)
    assert main(["--weights", "--out", str(tmp_path / "out")]) == 2
    assert caplog.text.count("models/model.pt: missing") == len(list((ROOT / "bundles").iterdir()))
    assert not (tmp_path / "out").exists()


def test_all_bundles_are_packed_by_default(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    bundles = sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir())
    assert [path.name.rpartition("_v")[0] for path in sorted(tmp_path.iterdir())] == bundles
