import json
import logging
import subprocess
import sys
from importlib.metadata import version

import pytest

from scripts.common import packed
from scripts.common.errors import InputError
from scripts.common.packed import check_bundle
from tests.conftest import ROOT
from tools.pack import pack

INSTALLED = {f"{key}_version": version(name) for key, name in (("monai", "monai"), ("numpy", "numpy"))}
CHECK = "import json, sys; from scripts.common.packed import check_bundle; check_bundle(json.loads(sys.argv[1]))"


def test_code_in_the_repository_belongs_to_every_bundle(caplog):
    check_bundle({"name": "any", "version": "0", **INSTALLED})
    assert not caplog.records


def test_code_of_another_bundle_is_refused(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"name": "one", "version": "1.0"}))
    monkeypatch.setattr(packed, "SCRIPTS", tmp_path / "scripts")
    check_bundle({"name": "one", "version": "1.0"})
    for other in ({"name": "two", "version": "1.0"}, {"name": "one", "version": "1.1"}):
        with pytest.raises(
            InputError, match=f"scripts: is the code of 'one 1.0', and the config is of '{other['name']}"
        ):
            check_bundle(other)


def test_other_versions_of_libraries_are_one_warning(caplog):
    check_bundle({"monai_version": "1.5.0", "numpy_version": "1.26.4"})
    (record,) = caplog.records
    expected = f"monai {version('monai')} instead of 1.5.0, numpy {version('numpy')} instead of 1.26.4"
    assert (record.levelno, record.message) == (logging.WARNING, f"not as released: {expected}; results may differ")


def test_changed_code_of_a_packed_bundle_is_one_warning(tmp_path):
    archive = pack(ROOT / "bundles" / "swin_bob_btcv", tmp_path)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(archive), str(tmp_path)], check=True)
    bundle = tmp_path / "swin_bob_btcv"
    arguments = [sys.executable, "-c", CHECK, (bundle / "configs" / "metadata.json").read_text()]

    def said():
        done = subprocess.run(arguments, cwd=bundle, capture_output=True, text=True, check=True)
        return done.stderr.splitlines()

    assert said() == []
    (bundle / "scripts" / "common" / "grids.py").open("a").write("# mine\n")
    (line,) = said()
    assert line == f"not as released: the code in {bundle / 'scripts'} was changed; results may differ"
