import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.common.errors import InputError
from tools.pack import ROOT, main, named_modules, pack, packed_modules


def names(files):
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_modules_are_followed_through_their_imports():
    assert names(packed_modules(["scripts.io.writing.SaveLabelMapd"])) == {
        "scripts/__init__.py",
        "scripts/common/__init__.py",
        "scripts/common/errors.py",
        "scripts/common/files.py",
        "scripts/common/flags.py",
        "scripts/common/label_maps.py",
        "scripts/common/names.py",
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


def test_module_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"^scripts\.none\.Thing: no such module below scripts"):
        packed_modules(["scripts.none.Thing"])


@pytest.mark.parametrize(
    ("bundle", "absent"),
    [
        ("swin_bob_btcv", ("scripts/brats", "scripts/solf", "scripts/cohort", "scripts/prepare_brats")),
        ("swin_bob_brats", ("scripts/solf", "scripts/cohort", "btcv")),
        ("solf_filter", ("scripts/brats", "scripts/etta", "swin_unetr", "scripts/training", "scripts/io/dicom")),
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


@pytest.mark.parametrize("weights", [True, False])
def test_weights_are_packed_only_when_asked(tmp_path, weights):
    bundle = tmp_path / "swin_bob_btcv"
    shutil.copytree(ROOT / "bundles" / "swin_bob_btcv", bundle, symlinks=True)
    (bundle / "models").mkdir(exist_ok=True)
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    with zipfile.ZipFile(pack(bundle, tmp_path, weights=weights)) as archive:
        assert ("swin_bob_btcv/models/model.pt" in archive.namelist()) is weights


def test_folder_that_is_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no configs/metadata.json, so this is not a bundle"):
        pack(tmp_path, tmp_path)


def test_all_bundles_are_packed_by_default(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    bundles = sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir())
    assert [path.name.rpartition("_v")[0] for path in sorted(tmp_path.iterdir())] == bundles
