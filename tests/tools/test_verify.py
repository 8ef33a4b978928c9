import io
import json
import os
import re
import stat
import zipfile

import pytest
import torch

from scripts.common.errors import InputError
from tests.conftest import ROOT
from tools.pack import pack
from tools.verify import main, verify

NAME = "swin_bob_btcv"
META = f"{NAME}/configs/metadata.json"
INFERENCE = f"{NAME}/configs/inference.json"
WEIGHTS = f"{NAME}/models/model.pt"


class Hostile:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(ROOT / "bundles" / NAME, tmp_path_factory.mktemp("packed"))


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def changed(packed, folder, entries, *, name=None):
    """Copy a zip with entries replaced, removed (None) or added."""
    target = folder / (name or packed.name)
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            if entries.get(entry, b"") is not None:
                new.writestr(entry, entries.get(entry, old.read(entry)))
        for entry in entries.keys() - set(old.namelist()):
            new.writestr(entry, entries[entry])
    return target


def with_values(packed, entry, **values):
    with zipfile.ZipFile(packed) as archive:
        return json.dumps({**json.loads(archive.read(entry)), **values}).encode()


def test_packed_bundle_is_accepted_and_its_missing_weights_are_named(packed, capsys, caplog):
    assert verify(packed) == ["no models/model.pt, and large_files.yml does not name it"]
    assert main([str(packed)]) == 0


def test_weights_in_the_zip_are_accepted(packed, tmp_path):
    assert verify(changed(packed, tmp_path, {WEIGHTS: saved({"weight": torch.ones(2)})})) == []


def test_other_digest_is_refused_before_anything_is_read(packed):
    with pytest.raises(InputError, match=r"its SHA-256 is [0-9a-f]{64}, not 00ff; do not unpack it"):
        verify(packed, sha256="00ff")


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({f"{NAME}/../evil.py": b""}, f"{NAME}/../evil.py: a path that leaves the folder"),
        ({"/etc/evil": b""}, "/etc/evil: a path that leaves the folder"),
        ({"C:/evil": b""}, "C:/evil: a path that leaves the folder"),
        ({f"{NAME}/license": b""}, f"{NAME}/license: is there twice"),
        ({f"{NAME}/LICENSE": None}, "LICENSE: missing"),
        ({INFERENCE: b"{"}, "configs/inference.json: not JSON"),
        ({META: b"[]"}, "metadata: $ [] is not of type 'object'"),
        ({f"{NAME}/scripts/common/grids.py": b"x = 1"}, "scripts: are not those that it was packed with"),
        ({f"{NAME}/scripts/more.py": b"x = 1"}, "scripts: are not those that it was packed with"),
        ({WEIGHTS: saved(Hostile())}, "models/model.pt: not plain weights"),
        ({WEIGHTS: b"no weights"}, "models/model.pt: not plain weights"),
        ({WEIGHTS: saved([1, 2])}, "models/model.pt: holds no weights"),
    ],
)
def test_bad_bundle_is_refused_with_the_reason(packed, tmp_path, entries, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        verify(changed(packed, tmp_path, entries))


def test_link_is_refused(packed, tmp_path):
    path = changed(packed, tmp_path, {})
    link = zipfile.ZipInfo(f"{NAME}/data")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(InputError, match=f"{NAME}/data: a link"):
        verify(path)


def test_name_of_the_file_is_that_of_folder_and_version(packed, tmp_path):
    with pytest.raises(InputError, match=f"with one folder <name>; it holds {NAME}"):
        verify(changed(packed, tmp_path, {}, name="other_v0.1.0.zip"))
    with pytest.raises(InputError, match=r"the file is named 9\.0\.0"):
        verify(changed(packed, tmp_path, {}, name=f"{NAME}_v9.0.0.zip"))


def test_code_of_other_packages_in_configs_is_named(packed, tmp_path):
    config = with_values(packed, INFERENCE, extra={"_target_": "os.system"}, more="$__import__('subprocess').run('x')")
    notes = verify(changed(packed, tmp_path, {INFERENCE: config}))
    assert notes[:2] == [
        "configs/inference.json names code of other packages: os.system",
        "configs/inference.json names code of other packages: import subprocess",
    ]


def test_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "x_v1.0.0.zip").write_bytes(b"no zip")
    assert main([str(tmp_path / "x_v1.0.0.zip")]) == 1
