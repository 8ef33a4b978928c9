"""The packages of `scripts` in their order: each imports only from those above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    {"common"},
    {"io"},
    {"models", "cohort"},
    {"inference"},
    {"data"},
    {"training", "scoring", "preview", "etta"},
    {"brats", "segvol", "solf", "ukbb", "ultrabones", "universeg"},
    {"pretrain"},
)
PACKAGES = sorted(path.name for path in (ROOT / "scripts").iterdir() if (path / "__init__.py").is_file())


def imported_packages(folder):
    """Return (file, package) of each import of `scripts.<package>` below a folder."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: relative import"
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("scripts."):
                    yield file.relative_to(ROOT).as_posix(), name.split(".")[1]


def test_every_package_has_a_layer():
    assert set(PACKAGES) == set().union(*LAYERS)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_from_layers_above_it(package):
    layer = next(number for number, packages in enumerate(LAYERS) if package in packages)
    allowed = {package}.union(*LAYERS[:layer])
    assert [found for found in imported_packages(ROOT / "scripts" / package) if found[1] not in allowed] == []


def test_init_files_are_empty():
    """So that importing a module costs no more than the module."""
    files = [path for path in (ROOT / "scripts").rglob("__init__.py") if path.parent.name != "scripts"]
    assert [path for path in files if path.read_text()] == []


def test_top_level_holds_commands_alone():
    """Each is the documented name of a command and a few lines long."""
    for path in (ROOT / "scripts").glob("*.py"):
        assert path.name == "__init__.py" or len(path.read_text().splitlines()) <= 7, path


def test_tests_mirror_the_packages():
    for path in (ROOT / "tests" / "scripts").rglob("test_*.py"):
        module = path.relative_to(ROOT / "tests" / "scripts").with_name(path.name.removeprefix("test_"))
        assert (ROOT / "scripts" / module).is_file() or path.name == "test_browser.py", path
