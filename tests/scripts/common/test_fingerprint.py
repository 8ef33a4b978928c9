import io
import itertools
import math
import os
import shutil
import subprocess
import sys
import threading
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Lambdad, ScaleIntensityd

from scripts.common import fingerprint as module
from scripts.common.errors import InputError
from scripts.common.fingerprint import file_state, fingerprint, imported_modules, module_file
from tests.conftest import ROOT


class Color(Enum):
    RED = 1
    BLUE = 2


class Holder:
    """Holds a value."""

    def __init__(self, value):
        self.value = value

    def method(self):
        return self.value


class OtherHolder(Holder):
    """Holds a value."""


class Itself(Holder):
    """Holds itself too."""

    def __init__(self, value):
        super().__init__(value)
        self.me = self


def above(limit):
    return lambda image: image > limit


def objects(*values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


CHANGES = {
    "number": (1, 2),
    "type of a number": (1, 1.0),
    "text and number": ("1", 1),
    "bool": (True, 1),
    "NumPy scalar": (np.float32(1), np.float64(1)),
    "path": (Path("a"), "a"),
    "enum": (Color.RED, Color.BLUE),
    "slice": (slice(1), slice(2)),
    "order": ([1, 2], [2, 1]),
    "nesting": ([[1], 2], [1, [2]]),
    "length": ([1], [1, 1]),
    "set": ({"a", "b"}, {"a", "c"}),
    "key": ({"a": 1}, {"b": 1}),
    "value of a key": ({"a": 1}, {"a": 2}),
    "array": (np.arange(3), np.array([0, 1, 3])),
    "dtype": (np.arange(3), np.arange(3.0)),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "array of objects": (objects("a", {"b": 1}), objects("a", {"b": 2})),
    "tensor": (torch.zeros(2), torch.ones(2)),
    "torch dtype": (torch.float16, torch.float32),
    "MetaTensor": (MetaTensor(torch.zeros(2)), MetaTensor(torch.ones(2))),
    "attribute": (Holder(1), Holder(2)),
    "class": (Holder(1), OtherHolder(1)),
    "type": (Holder, OtherHolder),
    "nested object": (SimpleNamespace(x=SimpleNamespace(y=1)), SimpleNamespace(x=SimpleNamespace(y=2))),
    "object inside itself": (Itself(1), Itself(2)),
    "lambda": (lambda x: x + 1, lambda x: x * 2),
    "constant of a lambda": (lambda x: x + 1, lambda x: x + 2),
    "name in a lambda": (lambda x: x.min(), lambda x: x.max()),
    "default of a lambda": (lambda x, y=1: x + y, lambda x, y=2: x + y),
    "ellipsis in a lambda": (lambda x: x[..., 0], lambda x: x[..., 1]),
    "lambda in a lambda": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "closure": (above(1), above(2)),
    "partial": (partial(np.add, 1), partial(np.add, 2)),
    "keyword of a partial": (partial(round, ndigits=1), partial(round, ndigits=2)),
    "ufunc": (np.exp, np.log),
    "builtin function": (math.floor, math.ceil),
    "builtin of another module": (math.sqrt, torch.sqrt),
    "builtin method": ([1].index, [2].index),
    "bound method": (Holder(1).method, Holder(2).method),
    "MONAI transform": (ScaleIntensityd("image", factor=1), ScaleIntensityd("image", factor=2)),
    "MONAI transforms": ([Lambdad("image", np.exp)], [Lambdad("image", np.log)]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_changes_with_the_value(change):
    before, after = CHANGES[change]
    assert fingerprint(before) == fingerprint(before)
    assert fingerprint(before) != fingerprint(after)
    assert fingerprint("first", before) != fingerprint("first", after)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, frozenset([1, 2, 3])),
        ([1, 2], (1, 2)),
        (np.zeros((2, 3)), np.zeros((3, 2)).T),
        (np.arange(4.0), torch.arange(4.0, dtype=torch.float64)),
        (np.arange(8)[::2], np.array([0, 2, 4, 6])),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (objects("a", {"b": 1}), objects("a", {"b": 1})),
        (Holder([1]), Holder([1])),
        (Itself(1), Itself(1)),
        (above(1), above(1)),
        (lambda x: x[..., 0], lambda x: x[..., 0]),
        ([Lambdad("image", np.exp)], [Lambdad("image", np.exp)]),
        (Color.RED, Color(1)),
        (math.nan, float("nan")),
    ],
)
def test_equal_values_have_equal_fingerprints_whatever_their_identity(one, other):
    assert one is not other or isinstance(one, Enum)
    assert fingerprint(one) == fingerprint(other)


def test_shared_objects_count_as_equal_ones():
    shared = [1, 2]
    assert fingerprint([shared, shared]) == fingerprint([[1, 2], [1, 2]])


def test_thread_local_state_is_ignored():
    holder = Holder(threading.local())
    before = fingerprint(holder)
    holder.value.x = 1
    assert fingerprint(holder) == before


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ((i for i in range(3)), "generator"),
        (itertools.count(), "count"),
        (np.random.default_rng(0), "Generator"),
        (np.random.RandomState(0).rand, "RandomState"),
        (object(), "object"),
        (math, "module"),
        (threading.Lock(), "lock"),
        (io.BytesIO(), "BytesIO"),
    ],
)
def test_value_whose_state_cannot_be_read_is_refused(value, kind):
    with pytest.raises(InputError, match=rf"^a {kind} has no fingerprint: its state cannot be read\.$"):
        fingerprint({"key": [Holder(value)]})


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(3).to_sparse(), "a tensor of torch.float32 has no fingerprint: "),
        (torch.zeros(2, device="meta"), "a tensor of torch.float32 has no fingerprint: "),
        (torch.zeros(2, dtype=torch.bfloat16), "a tensor of torch.bfloat16 has no fingerprint: "),
        (nested(5000), "a value has no fingerprint: it is nested too deeply."),
    ],
    ids=["sparse", "meta", "bfloat16", "nested"],
)
def test_value_that_cannot_be_described_is_refused(value, message):
    with pytest.raises(InputError, match=f"^{message}"):
        fingerprint(value)


@pytest.mark.parametrize("package", ["monai", "torch", "numpy"])
def test_another_version_changes_the_fingerprint(package, monkeypatch):
    before = fingerprint(1)
    version = module._version
    monkeypatch.setattr(module, "_version", lambda name: "0.1" if name == package else version(name))
    assert fingerprint(1) != before


def test_file_state_changes_with_the_file(tmp_path):
    file = tmp_path / "a.txt"
    assert file_state(file) == [str(file)]
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    assert file_state(file) == [str(file), 3, 1]
    file.write_text("two")
    assert file_state(file) != [str(file), 3, 1]


def test_state_of_a_folder_changes_with_its_files(tmp_path):
    file = tmp_path / "masks" / "spleen.nii"
    file.parent.mkdir()
    file.write_text("one")
    before = file_state(file.parent)
    assert before == file_state(file.parent)
    file.write_text("four")
    assert file_state(file.parent) != before


# Source files

PACKAGE = {
    "__init__.py": "",
    "common/__init__.py": "",
    "common/helper.py": "VALUE = 1\n",
    "common/lazy.py": "",
    "common/relative.py": "",
    "common/typed.py": "",
    "common/unused.py": "VALUE = 1\n",
    "data/__init__.py": "",
    "data/steps.py": """
from typing import TYPE_CHECKING
import json, numpy
import scripts.common.helper
from scripts.data import middle
if TYPE_CHECKING:
    from scripts.common.typed import Any
class Add:
    def __call__(self, x):
        from scripts.common import lazy
        return x
""",
    "data/middle.py": "from ..common import relative\nfrom .sibling import x\n",
    "data/sibling.py": "x = 1\n",
}
IMPORTED = set(PACKAGE) - {"common/unused.py"}


@pytest.fixture
def package(tmp_path):
    """A package `scripts` with this fingerprint module."""
    for name, text in PACKAGE.items():
        (tmp_path / "scripts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scripts" / name).write_text(text)
    for name in ("fingerprint.py", "errors.py"):
        shutil.copy(ROOT / "scripts" / "common" / name, tmp_path / "scripts" / "common")
    return tmp_path / "scripts"


def test_imports_are_followed_through_functions_relative_names_and_type_checks(package):
    found = imported_modules([package / "data" / "steps.py"], package.parent)
    assert {path.relative_to(package).as_posix() for path in found} == IMPORTED


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("scripts.common.helper.VALUE", "common/helper.py"),
        ("scripts.common.helper", "common/helper.py"),
        ("scripts.common", "common/__init__.py"),
        ("scripts.none", "__init__.py"),
    ],
)
def test_file_of_the_longest_module_is_found(package, name, file):
    assert module_file(name, package.parent) == package / file


def test_name_outside_the_folder_has_no_file(package):
    (package.parent / "evil.py").touch()
    for name in ("numpy.array", f"scripts.{package.parent}/evil", "scripts.../evil", "", "scripts."):
        assert module_file(name, package.parent) is None


@pytest.mark.parametrize("content", [b"def broken(:", b"\xff\xfe", b"x = 1\0"])
def test_file_that_is_not_python_is_named(package, content):
    (package / "data" / "sibling.py").write_bytes(content)
    with pytest.raises(InputError, match=r"sibling\.py: not Python \(.*\); correct or restore it\."):
        imported_modules([package / "data" / "steps.py"], package.parent)


PRINT_FINGERPRINT = """
import sys
sys.path.insert(0, sys.argv[1])
from scripts.common.fingerprint import fingerprint
from {module} import Add
step = Add()
step.words = set("one two three four five six seven eight".split())
step.identity = [object] * 3, {{"b": step, "a": {{1: step}}}}
print(fingerprint(step, [step, step]))
"""


def fingerprint_in_new_process(package, *, hash_seed="0", module="scripts.data.steps"):
    command = [sys.executable, "-c", PRINT_FINGERPRINT.format(module=module), str(package.parent)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=package.parent)
    return done.stdout


def test_processes_agree_whatever_their_hash_seed(package):
    assert len({fingerprint_in_new_process(package, hash_seed=seed) for seed in ("0", "1", "2")}) == 1


def test_fingerprint_changes_with_the_modules_that_the_object_s_module_imports(package):
    before = fingerprint_in_new_process(package)
    for name in sorted(PACKAGE):
        text = (package / name).read_text()
        (package / name).write_text(text + "\n# changed\n")
        changed = fingerprint_in_new_process(package) != before
        (package / name).write_text(text)
        assert changed == (name in IMPORTED), name


def test_file_of_another_package_counts_but_not_what_it_imports(package):
    other = package.parent / "third_party.py"
    other.write_text("import imported_by_it\nclass Add:\n    pass\n")
    (package.parent / "imported_by_it.py").write_text("")
    before = fingerprint_in_new_process(package, module="third_party")
    (package.parent / "imported_by_it.py").write_text("# changed")
    assert fingerprint_in_new_process(package, module="third_party") == before
    other.write_text(other.read_text() + "# changed\n")
    assert fingerprint_in_new_process(package, module="third_party") != before


def test_process_without_torch_agrees_with_one_that_imported_it(package):
    (package / "data" / "steps.py").write_text("class Add:\n    pass\n")
    before = fingerprint_in_new_process(package)
    code = f"import torch\n{PRINT_FINGERPRINT.format(module='scripts.data.steps')}"
    command = [sys.executable, "-c", code, str(package.parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == before
