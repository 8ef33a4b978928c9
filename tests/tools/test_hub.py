import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from monai.bundle import scripts as monai_scripts
from monai.utils import optional_import

from tools.hub import main, push
from tools.pack import ROOT, pack

BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir() if path.is_dir())


class Hub:
    """Stands in for the network: keeps what `huggingface_hub.HfApi` is asked to upload."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def create_repo(self, **options):
        self.calls.append(("create_repo", options))

    def create_tag(self, **options):
        self.calls.append(("create_tag", options["tag"]))

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=()):
        def ignored(folder, names):
            inner = Path(folder).relative_to(folder_path)
            return [n for n in names if any(fnmatch((inner / n).as_posix(), p) for p in ignore_patterns)]

        shutil.copytree(folder_path, self.folder, ignore=ignored)
        return f"https://example.org/{repo_id}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """MONAI's own function runs, with the client of the hub replaced."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(monai_scripts, "huggingface_hub", SimpleNamespace(HfApi=lambda token: hub))
    return hub


@pytest.mark.parametrize("name", BUNDLES)
def test_all_files_are_uploaded_and_the_links_of_the_page_lead_to_them(hub, tmp_path, name):
    path = pack(ROOT / "bundles" / name, tmp_path)
    assert push(path, "user/bundle") == "https://example.org/user/bundle"
    assert len(list((hub.folder / "scripts").rglob("*.py"))) > 20
    assert (hub.folder / "configs" / "inference.json").is_file()
    page = (hub.folder / "README.md").read_text()
    assert page.startswith("---\ntags:\n- monai")
    assert "license: apache-2.0" in page
    links = [
        link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith(("http", "#"))
    ]
    assert links
    assert [link for link in links if not (hub.folder / link).is_file()] == []
    assert hub.calls == [("create_repo", {"repo_id": "user/bundle", "private": True, "exist_ok": True})]


def test_tag_is_the_version_and_the_zip_is_left_as_it_was(hub, tmp_path):
    path = pack(ROOT / "bundles" / "solf_filter", tmp_path)
    before = path.read_bytes()
    assert main([str(path), "user/bundle", "--tag", "--public"]) == 0
    assert hub.calls[1] == ("create_tag", path.stem.rpartition("_v")[2])
    assert hub.calls[0][1]["private"] is False
    assert path.read_bytes() == before


def test_file_that_is_no_bundle_is_not_uploaded(hub, tmp_path):
    (tmp_path / "x_v1.0.0.zip").write_bytes(b"no zip")
    assert main([str(tmp_path / "x_v1.0.0.zip"), "user/bundle"]) == 1
    assert hub.calls == []


def test_missing_package_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(monai_scripts, "huggingface_hub", optional_import("no_such_package")[0])
    assert main([str(pack(ROOT / "bundles" / "solf_filter", tmp_path)), "user/bundle"]) == 1
    assert "error: huggingface_hub is missing: pip install huggingface_hub." in caplog.text
