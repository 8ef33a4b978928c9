"""What every bundle keeps, those to come included."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from pydoc import locate

import jsonschema
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.bundle.config_item import ComponentLocator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import TINY, TINY_OF, bundle_workflow
from tools.format_configs import format_json
from tools.pack import pack

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if path.is_dir())
WORKFLOWS = {"train.json": "train", "inference.json": "infer"}
PLAIN_IN_INFERENCE = ("network_def", "preprocessing", "inferer", "postprocessing")


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request):
    return request.param


@pytest.fixture
def data_of(torso_data, label_data, brain_data, dixon_data, ultrasound_data):
    """A small data set for each bundle."""
    own = {"swin_bob_btcv": torso_data, "swin_bob_brats": brain_data, "universeg": torso_data}
    own |= {"ultrabones": ultrasound_data, "segvol": torso_data}
    return {**own, "swin_bob_pretrain": dixon_data, "solf_filter": label_data}


def configs(bundle):
    return {path.name: json.loads(path.read_text()) for path in sorted((bundle / "configs").glob("*.json"))}


def walk(value, path=""):
    yield path, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from walk(item, f"{path}#{key}" if path else str(key))


def tiny(bundle):
    return TINY_OF.get(bundle.name, TINY)


def bases(bundle, name):
    """Return the configs that an overlay is laid upon."""
    if bundle.name == "solf_filter":
        return ["inference.json" if "evaluate" in name else "train.json"]
    if (bundle.name, name) == ("universeg", "evaluate.json"):
        return ["inference.json"]
    if name == "zero_shot.json":
        return ["train.json", "evaluate.json"]
    if name.endswith("train.json") or "evaluate" in name:
        return ["train.json"]
    if name == "inference_cpu.json":
        return ["inference.json"]
    return ["train.json", "inference.json"]


def overlays(bundle):
    alone = (*WORKFLOWS, "metadata.json", "inference_portable.json")
    return [name for name in configs(bundle) if name not in alone]


def test_metadata_validates_against_the_bundle_specification(bundle):
    schema = json.loads((ROOT / "tools" / "assets" / "metadata_schema.json").read_text())
    jsonschema.validate(configs(bundle)["metadata.json"], schema)


def test_metadata_passes_the_check_of_the_model_zoo(bundle, tmp_path):
    """MONAI's own function, which takes a schema that is there instead of downloading it."""
    schema = shutil.copy(ROOT / "tools" / "assets" / "metadata_schema.json", tmp_path)
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=schema)


def test_version_is_in_the_changelog(bundle):
    metadata = configs(bundle)["metadata.json"]
    assert metadata["version"] in metadata["changelog"]


def test_required_versions_are_those_of_requirements(bundle):
    metadata = configs(bundle)["metadata.json"]
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    wanted = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
        **metadata.get("optional_packages", {}),
    }
    assert wanted == {name: pinned[name] for name in wanted}
    assert version("monai") == wanted["monai"]


def test_channel_definitions_count_the_channels(bundle):
    """Of regions and of a threshold, MONAI Label needs the names of what the label map holds, not of the channels."""
    data_format = configs(bundle)["metadata.json"]["network_data_format"]
    pred = data_format["outputs"].pop("pred")
    count = pred["num_channels"] + any(key in configs(bundle)["inference.json"] for key in ("regions", "threshold"))
    for tensor in (*data_format["inputs"].values(), {**pred, "num_channels": count}):
        assert [int(key) for key in tensor["channel_def"]] == list(range(tensor["num_channels"]))


def test_bundle_has_the_files_of_the_layout(bundle):
    for name in (
        "LICENSE",
        "docs/README.md",
        "docs/data_license.txt",
        "large_files.yml",
        "configs/logging.conf",
    ):
        assert (bundle / name).is_file(), name
    assert (bundle / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (bundle / "scripts").readlink() == Path("../../scripts")


def test_large_files_say_where_they_come_from(bundle):
    files = yaml.safe_load((bundle / "large_files.yml").read_text())["large_files"]
    for file in files:
        assert file["path"].startswith("models/")
        assert file["url"].startswith("https://")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_property_is_missing(bundle, name, data_of, tmp_path):
    if not (bundle / "configs" / name).is_file():
        pytest.skip(f"{bundle.name} has no {name}")
    settings = {**tiny(bundle), "dataset_dir": str(data_of[bundle.name]), "output_dir": str(tmp_path)}
    workflow = bundle_workflow(bundle.name, [name], kind=WORKFLOWS[name], **settings)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_network_maps_the_declared_input_to_the_declared_output(bundle, tmp_path):
    folder = bundle / "configs"
    name = "inference.json"
    options = {key: value for key, value in tiny(bundle).items() if key.startswith("network_def")}
    options.pop("network_def#spatial_size", None)  # of segvol, which takes images of one size alone
    if bundle.name == "universeg":  # with a support set
        sizes = configs(bundle)["metadata.json"]["network_data_format"]["inputs"]["image"]["spatial_shape"]
        support = torch.rand(1, 2, 1, *sizes)
        options["extra_forward_args"] = {"support_images": support, "support_labels": (support > 0.5).float()}
    verify_net_in_out("network_def", str(folder / "metadata.json"), str(folder / name), device="cpu", **options)


def test_overlay_for_the_cpu_is_the_same_in_all_bundles():
    found = [(bundle / "configs" / "inference_cpu.json") for bundle in BUNDLES]
    assert len({path.read_text() for path in found if path.is_file()}) == 1


def test_configs_are_formatted(bundle):
    for path in (bundle / "configs").glob("*.json"):
        assert path.read_text() == format_json(json.loads(path.read_text())) + "\n", path.name


def test_overlay_keys_exist_in_their_base(bundle):
    """Every key overrides something; what an overlay adds is referred to by the overlay itself."""
    loaded = configs(bundle)
    for name in overlays(bundle):
        parser = ConfigParser({k: v for base in bases(bundle, name) for k, v in loaded.get(base, {}).items()})
        text = json.dumps(loaded[name])
        for key in loaded[name]:
            target = key.removeprefix("+")
            added = f"@{target}" in text and target.rpartition("#")[0] in ("", "train", "validate")
            argument = target.rpartition("#")[0] in parser and "_target_" in parser[target.rpartition("#")[0]]
            known = target in parser or target == "finalize"
            assert known or added or argument, f"{name}: {key} overrides nothing and nothing refers to it"


def test_settings_are_used(bundle):
    """A key that nothing refers to is dead: bar those that MONAI itself looks up."""
    looked_up = {
        "imports",
        "initialize",
        "run",
        "finalize",
        "training",
        "bundle_root",
        "train",
        "validate",
        "build_store",
        "write_spectrum",
    }
    looked_up |= {"evaluator", "dataset", "handlers", "trainer", *PLAIN_IN_INFERENCE}
    loaded = configs(bundle)
    text = {name: json.dumps(content) for name, content in loaded.items()}
    for name in WORKFLOWS:
        for key in loaded.get(name, {}):
            refers = re.compile(rf"@{key}\b")
            users = [text[name], *(text[overlay] for overlay in overlays(bundle) if name in bases(bundle, overlay))]
            assert key in looked_up or any(map(refers.search, users)), f"{name}: nothing refers to {key}"


def test_every_target_resolves(bundle):
    locator = ComponentLocator()
    for name, content in configs(bundle).items():
        for path, value in walk(content):
            if path.endswith("_target_"):
                module = locator.get_component_module_name(value)
                found = locate(value) if "." in value else module
                assert found, f"{name}: {path} = {value}"


def test_expressions_are_one_short_call(bundle):
    for name, content in configs(bundle).items():
        for path, value in walk(content):
            if isinstance(value, str) and value.startswith("$"):
                assert len(value) <= 75, f"{name}: {path}"
                assert "lambda" not in value, f"{name}: {path}"
                early = path.startswith("imports") and value == "$import scripts"  # checks the command line early
                assert early or "scripts" not in value, f"{name}: {path}: found only in the folder of the bundle"


def test_initialize_uses_nothing_of_scripts(bundle):
    for name, content in configs(bundle).items():
        assert "scripts" not in json.dumps(content.get("initialize", [])), name


def test_handlers_are_literal_lists(bundle):
    for name, content in configs(bundle).items():
        for path, value in walk(content):
            if path.split("#")[-1] == "handlers":
                assert isinstance(value, list), f"{name}: {path}"
                assert all("_target_" in item for item in value), f"{name}: {path}"


def test_what_monai_label_reads_needs_no_metadata(bundle):
    inference = configs(bundle).get("inference.json", {})
    for key in PLAIN_IN_INFERENCE:
        assert "_meta_" not in json.dumps(inference.get(key)), key
        assert "@channel_def" not in json.dumps(inference.get(key)), key


NOT_THERE = ("pandas", "ignite", "matplotlib", "numba", "highdicom", "openvino", "cc3d", "pyarrow", "jsonschema")
NOT_THERE += ("blosc2", "instant_clip_tokenizer")
"""Packages that other programs may lack."""


def test_what_other_programs_read_needs_few_packages(bundle):
    """MONAI Label, Deploy and FL parse these parts, and what they refer to, in environments of their own."""
    if bundle.name == "solf_filter":
        pytest.skip("the label filter computes with numba")
    inference, found, keys = configs(bundle)["inference.json"], {}, list(PLAIN_IN_INFERENCE)
    while keys:
        if (key := keys.pop()) in inference and key not in found:
            found[key] = json.dumps(inference[key])
            keys += re.findall(r"@(\w+)", found[key])
    names = {name for text in found.values() for name in re.findall(r"scripts(?:\.\w+)+", text)}
    modules = ", ".join(sorted(name.rpartition(".")[0] for name in names))
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE})); import {modules}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def resolved(bundle, name, **overrides):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / name))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(bundle), **overrides})
    return parser


INFERENCE_ALONE = ("scripts.segvol.viewer.ViewerPromptsd", "scripts.ultrabones.transforms.CheckUltrasoundd")
"""Add what somebody clicks in MONAI Label, and refuse pictures of text: both leave the image as it is."""


def test_train_and_inference_agree_on_the_network(bundle):
    if not (bundle / "configs" / "train.json").is_file():
        pytest.skip(f"{bundle.name} does not train")
    train, infer = resolved(bundle, "train.json"), resolved(bundle, "inference.json")
    for key, value in infer["network_def"].items():
        if key not in train["network_def"]:
            options = inspect.signature(locate(infer["network_def"]["_target_"])).parameters
            assert infer.get_parsed_content(f"network_def#{key}") == options[key].default, key
        elif train["network_def"][key] != value:
            resolved_value = train.get_parsed_content(f"network_def#{key}")
            assert resolved_value == value, key
    assert set(train["network_def"]) - set(infer["network_def"]) <= {"use_checkpoint"}


def test_train_and_inference_agree_on_settings_and_deterministic_transforms(bundle):
    if not (bundle / "configs" / "train.json").is_file():
        pytest.skip(f"{bundle.name} does not train")
    train = resolved(bundle, "train.json", network_grid_keys=["image"])
    infer = resolved(bundle, "inference.json")
    for key in ("patch_size", "spacing_mm", "speed", "sw_overlap", "legacy_merging"):
        assert train.get(key) == infer.get(key), key
    ours = train["train"]["deterministic_transforms"]
    theirs = [one for one in infer["preprocessing"]["transforms"] if one["_target_"] not in INFERENCE_ALONE]
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert set(a) == set(b)
        for key in set(a) - {"keys", "mode"}:
            assert a[key] == b[key], f"transform {index}: {key}"


def test_validation_and_inference_agree_on_the_inferer(bundle):
    loaded = configs(bundle)
    if "validate" not in loaded.get("train.json", {}):
        pytest.skip(f"{bundle.name} does not validate while it trains")
    if bundle.name in ("universeg", "segvol"):
        pytest.skip("validation predicts episodes, which hold their support or prompts; the inferer adds it")
    ours, theirs = loaded["train.json"]["validate"]["inferer"], loaded["inference.json"]["inferer"]
    differing = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert differing <= {"progress", "device"}


def test_portable_config_has_the_settings_network_transforms_and_inferer_of_inference(bundle):
    """But for the classes of `scripts`."""
    loaded = configs(bundle)
    if "inference_portable.json" not in loaded:
        pytest.skip(f"{bundle.name} has no portable config")
    ours, theirs = loaded["inference_portable.json"], loaded["inference.json"]
    for key in ("patch_size", "spacing_mm", "sw_batch_size"):
        assert ours[key] == theirs[key], key
    assert ours["sw_overlap"] == ConfigParser(theirs).get_parsed_content("sw_overlap")
    own = {"_target_", "out_channels", "device"}  # of our inferer
    inferers = [{key: value for key, value in one["inferer"].items() if key not in own} for one in (ours, theirs)]
    assert inferers[0] == inferers[1]
    assert {**theirs["network_def"], **ours["network_def"]} == theirs["network_def"]
    mine, others = (config["preprocessing"]["transforms"][-5:] for config in (ours, theirs))
    for a, b in zip(mine, others, strict=True):
        assert {**b, "_target_": b["_target_"].rpartition(".")[2]} == a


RUN_ELSEWHERE = """
import importlib, json, pathlib, pkgutil, pydoc, sys

sys.modules.update(dict.fromkeys({refused!r}))  # as if they were not installed
import scripts, torch
for module in pkgutil.walk_packages(scripts.__path__, "scripts."):
    importlib.import_module(module.name)
assert scripts.__file__.startswith({base!r}), scripts.__file__
from monai.bundle import ConfigWorkflow
for name, kind in {workflows!r}.items():
    workflow = ConfigWorkflow("configs/" + name, workflow_type=kind, logging_file=False, **{settings!r})
    workflow.initialize()
    assert workflow.check_properties() == []
    if name == "inference.json":
        pathlib.Path("models").mkdir(exist_ok=True)
        if not pathlib.Path("models/model.pt").is_file():
            torch.save(workflow.network_def.state_dict(), "models/model.pt")
        workflow.run()
        workflow.finalize()
        assert [path for path in pathlib.Path("output").iterdir() if path.name.endswith(("_seg.png", ".nii.gz"))]
    elif {trains!r}:
        workflow.run()
for path in pathlib.Path("configs").glob("*.json"):
    for part in path.read_text().split('"_target_": "scripts.')[1:]:
        target = "scripts." + part.split('"')[0]
        assert pydoc.locate(target), target
"""


def test_packed_bundle_runs_elsewhere_with_its_declared_packages_alone(bundle, data_of, tmp_path):
    """Every module imports, every target resolves and the workflows run while all other packages are refused."""
    archive = pack(bundle, tmp_path)
    with zipfile.ZipFile(archive) as zipped:
        assert {Path(name).parts[0] for name in zipped.namelist()} == {bundle.name}
        zipped.extractall(tmp_path)
    base = tmp_path / bundle.name
    present = {name: kind for name, kind in WORKFLOWS.items() if (base / "configs" / name).is_file()}
    settings = {**tiny(bundle), "dataset_dir": str(data_of[bundle.name])}
    trains = bundle.name == "solf_filter"  # in seconds; a filter without thresholds would refuse to judge
    settings |= {"ckpt_dir": "models"} if trains else {}
    refused = undeclared_modules(declared_packages(bundle))
    code = RUN_ELSEWHERE.format(base=str(base), workflows=present, settings=settings, trains=trains, refused=refused)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=base, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]


def declared_packages(bundle):
    metadata = configs(bundle)["metadata.json"]
    return {"monai", "torch", "numpy", *metadata["required_packages_version"]}


def undeclared_modules(declared):
    """Return the installed top-level modules that belong to no declared package, nor to what those require."""
    allowed, todo = set(), list(declared)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in allowed:
            allowed.add(name)
            with suppress(PackageNotFoundError):  # a requirement of another platform
                found = [Requirement(text) for text in requires(name) or ()]
                todo += [r.name for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    owners = packages_distributions()
    return sorted(m for m, names in owners.items() if not {canonicalize_name(name) for name in names} & allowed)


NEEDED_BY = {
    "SwinUNETR": "einops",
    "scripts.models.segvol.SegVol": "einops",
    "TensorBoardStatsHandler": "tensorboard",
    "scripts.models.compiled.CompiledNetwork": "openvino",
}
"""Packages that a component of the configs imports by name, or MONAI for it."""


def test_declared_packages_are_those_that_are_imported(bundle, tmp_path):
    """And fire, without which `python -m monai.bundle` does not run."""
    with zipfile.ZipFile(pack(bundle, tmp_path)) as zipped:
        sources = [zipped.read(name) for name in zipped.namelist() if name.endswith(".py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    modules = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"scripts"}
    owners = packages_distributions()
    imported = {canonicalize_name(owners[module][0]) for module in modules}
    targets = {value for content in configs(bundle).values() for path, value in walk(content) if "_target_" in path}
    needed = {package for target, package in NEEDED_BY.items() if target in targets}
    needed |= {"monai", "torch", "numpy", "fire"}
    declared = {*declared_packages(bundle), *configs(bundle)["metadata.json"].get("optional_packages", ())}
    assert {canonicalize_name(name) for name in declared} == imported | needed


def test_packing_twice_gives_the_same_bytes(bundle, tmp_path):
    first, second = pack(bundle, tmp_path / "a"), pack(bundle, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert first.name == f"{bundle.name}_v{configs(bundle)['metadata.json']['version']}.zip"
