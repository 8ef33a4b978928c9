import shutil
import zipfile

import pytest

from tools.pack import ROOT, main, pack, reachable


def test_modules_are_followed_through_their_imports():
    names = {path.relative_to(ROOT).as_posix() for path in reachable(['"_target_": "scripts.output.SaveLabelMapd"'])}
    assert names == {
        "scripts/__init__.py",
        "scripts/errors.py",
        "scripts/files.py",
        "scripts/names.py",
        "scripts/output.py",
    }


def test_assets_travel_with_their_modules():
    """The report's page and style are no Python, and needed all the same."""
    names = {path.name for path in reachable(["scripts.solf.report.write"])}
    assert {"index.html", "report.css", "core.js"} <= names
    assert "index.html" not in {path.name for path in reachable(["scripts.solf.features"])}


@pytest.mark.parametrize("weights", [True, False])
def test_weights_travel_only_when_asked(tmp_path, weights):
    bundle = tmp_path / "swin_bob_btcv"
    shutil.copytree(ROOT / "bundles" / "swin_bob_btcv", bundle, symlinks=True)
    (bundle / "models").mkdir(exist_ok=True)
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    with zipfile.ZipFile(pack(bundle, tmp_path, weights=weights)) as archive:
        assert ("swin_bob_btcv/models/model.pt" in archive.namelist()) is weights


def test_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no configs/metadata.json, so this is no bundle"):
        pack(tmp_path, tmp_path)


def test_all_bundles_are_packed_by_default(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    bundles = sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir())
    assert [path.name.rpartition("_v")[0] for path in sorted(tmp_path.iterdir())] == bundles
