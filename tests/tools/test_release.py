import hashlib
import json
import subprocess

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools.release import main

NAME = "swin_bob_btcv"


def test_release_has_checksums_and_packages_and_is_the_same_twice(tmp_path):
    for folder in ("one", "two"):
        assert main([NAME, "--out", str(tmp_path / folder)]) == 0
    files = {path.name: path for path in (tmp_path / "one").iterdir() if not path.name.startswith(".")}
    (archive,) = (name for name in files if name.endswith(".zip"))
    assert sorted(files) == sorted([archive, f"{archive}.cdx.json", "SHA256SUMS", "model_info.json"])
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "one", check=True)
    info = json.loads(files["model_info.json"].read_text())
    digest = hashlib.sha1(files[archive].read_bytes(), usedforsecurity=False).hexdigest()
    assert info == {archive: {"checksum": digest, "source": ""}}
    for name, path in files.items():
        assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_packages_are_a_valid_document_with_the_versions_of_the_metadata(tmp_path):
    assert main([NAME, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.cdx.json")
    text = path.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    versions = {part["name"]: part["version"] for part in content["components"]}
    assert (versions["monai"], versions["torch"]) == ("1.6.1", "2.13.0")
    assert content["metadata"]["component"]["type"] == "machine-learning-model"


def test_unknown_bundle_is_refused(tmp_path):
    assert main(["none", "--out", str(tmp_path)]) == 2
