"""Bad files of weights, through the loading of each bundle: one message names the file and what is wrong."""

import re
import subprocess
import sys
from functools import cache

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from tests.conftest import ROOT, TINY, TINY_OF, TINY_TRAINING, bundle_workflow, command_line
from tests.hostile.weight_damages import FILES, TENSORS, changed, key_of, saved

BTCV, BRATS, FILTER = "swin_bob_btcv", "swin_bob_brats", "solf_filter"
NETWORKS = {"swin UNETR": (BTCV, BRATS), "filter": (FILTER,)}
INDEX = "swinViT.layers1.0.blocks.0.attn.relative_position_index"


def value(position, number):
    """Return a function that writes weights with one other value."""

    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[position] = number
        return tensor

    return changed(change)


def entry(name, make):
    return saved(lambda state: {**state, name: make(state[name])})


def text(content):
    return lambda tensor: torch.tensor(list(content.encode().ljust(len(tensor))), dtype=torch.uint8)


def at_level(level, number):
    return lambda tensor: tensor.clone().index_fill_(0, torch.tensor(level), number)


VALUES = {
    "swin UNETR": {
        "NaN": (value(0, torch.nan), "holds 1 values that are not finite"),
        "infinite": (value(-1, -torch.inf), "holds 1 values that are not finite"),
        "NaN in half precision": (changed(lambda t: (t * torch.nan).half()), "values that are not finite"),
        "beyond float32": (changed(lambda t: torch.full(t.shape, 1e300, dtype=torch.float64)), "that are not finite"),
        "index out of range": (entry(INDEX, lambda t: t + 10**6), "has other values than the network computes"),
        "index of zeros": (entry(INDEX, torch.zeros_like), "has other values than the network computes"),
        "index of floats": (entry(INDEX, lambda t: t.float()), "of torch.float32, the network's of torch.int64"),
        "marked as legacy": (
            saved(lambda state: {**state, "swinViT.layers1.0.downsample.slice_offsets": torch.zeros(8, 3)}),
            "trained with the patch merging of MONAI < 1.5; set legacy_merging to true.",
        ),
    },
    "filter": {
        "low is NaN": (entry("low", lambda t: t * torch.nan), "low or high is NaN for spleen, normalized_volume"),
        "low above high": (entry("low", lambda t: t.clone().fill_(9)), "low is above high for "),
        "low infinite": (entry("low", lambda t: t.abs()), "low is above high for "),
        "low and high swapped": (saved(lambda s: {**s, "low": s["high"], "high": s["low"]}), "low is above high for "),
        "low of half precision": (entry("low", lambda t: t.half()), "of torch.float16, the network's of torch.float"),
        "subjects negative": (entry("subjects", lambda t: t - 9), "subjects is negative for spleen"),
        "quantiles descending": (entry("quantiles", lambda t: t.flip(0)), "quantiles are not ascending for "),
        "quantiles half NaN": (entry("quantiles", at_level(7, torch.nan)), "quantiles are NaN in part for "),
        "quantiles infinite": (entry("quantiles", at_level(200, torch.inf)), "quantiles are infinite for "),
        "no votes": (entry("votes", lambda t: t * 0), "votes is 0 for 3 voting features"),
        "too many votes": (entry("votes", lambda t: t * 0 + 4), "votes is 4 for 3 voting features"),
        "votes NaN": (entry("votes", lambda t: t * torch.nan), "of torch.float32, the network's of torch.int64"),
        "no voting feature": (entry("voting", torch.zeros_like), "votes is 2 for 0 voting features"),
        "another label table": (entry("table", lambda t: t + 1), "fitted with another label table than these 72"),
        "table of another shape": (entry("table", lambda t: t[None]), "fitted with another label table"),
        "table of floats": (entry("table", lambda t: t.float()), "of torch.float32, the network's of torch.uint8"),
        "of an earlier version": (saved(lambda s: {**s, "table_id": torch.tensor(7)}), "before 0.4.0; fit again"),
        "about is no JSON": (entry("about", lambda t: t + 1), "about, or coding with its coefficients, is not"),
        "about is no text": (entry("about", lambda t: t * 0 + 255), "about, or coding with its coefficients, is not"),
        "about is a list": (entry("about", text("[1]")), "about, or coding with its coefficients, is not"),
        "about is nested": (entry("about", text("[" * 2000)), "about, or coding with its coefficients, is not"),
        "about of another length": (entry("about", lambda t: t[:9]), "1 of another shape (first: about"),
        "subjects above cases": (entry("cases", lambda t: t * 0 + 4), "subjects is above the number of cases for"),
        "cases negative": (entry("cases", lambda t: t * 0 - 1), "subjects is above the number of cases for"),
        "percent of missing": (entry("missing_percent", lambda t: t * 2), "missing_percent is 190"),
        "percent is NaN": (entry("missing_percent", lambda t: t * torch.nan), "missing_percent is nan"),
        "present above 100": (entry("present_percent", lambda t: t * 0 + 101), "present_percent is not from 0 to 100"),
        "spread of 0": (entry("reference", lambda t: t * 0), "spreads that are not above 0"),
        "median infinite": (entry("reference", at_level(0, torch.inf)), "reference has medians that are infinite"),
    },
}  # fmt: skip
"""All tensors have the right names and shapes, and a value is wrong."""
SHORT = [write for write, _ in FILES.values()]
"""What needs no whole state dict."""
ROWS = [
    pytest.param(bundle, *row, id=f"{bundle}-{name}")
    for network, bundles in NETWORKS.items()
    for bundle in bundles
    for name, row in (FILES | TENSORS | VALUES[network]).items()
]


@cache
def loader(bundle):
    """Return the handler of a bundle that loads its weights, and good weights."""
    workflow = bundle_workflow(bundle, ["inference.json"], kind="infer", **TINY_OF.get(bundle, TINY))
    workflow.initialize()
    handler = handler_of(workflow, "handlers", "StrictCheckpointLoader")
    if bundle == FILTER:
        fit(handler.network)
    return handler, {key: tensor.clone() for key, tensor in handler.network.state_dict().items()}


def handler_of(workflow, key, kind):
    """Return the handler of that kind of a list in the config."""
    targets = [handler["_target_"].rpartition(".")[2] for handler in workflow.parser[key]]
    return workflow.parser.get_parsed_content(f"{key}#{targets.index(kind)}")


def fit(network):
    """Give the filter thresholds as of a fit."""
    network.voting[:3], network.votes[...], network.subjects[...], network.cases[...] = True, 2, 5, 9
    network.reference[...], network.present_percent[...] = 1, 99
    network.quantiles[:, :3, :3] = torch.linspace(0, 2, 201)[:, None, None]
    network.low[:3, :3], network.high[:3, :3] = 0.1, 1.9


def load(handler, path):
    handler.path = path
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([0])


def versions(network):
    """Return how often each tensor was written to."""
    return {key: tensor._version for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("bundle", "write", "message"), ROWS)
def test_bad_weights_are_refused_with_a_message_and_the_network_stays(tmp_path, monkeypatch, bundle, write, message):
    handler, state = loader(bundle)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    before = versions(handler.network)
    write(path, dict(list(state.items())[:3]) if write in SHORT else state)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: ')}.*{re.escape(message)}") as caught:
        load(handler, path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert versions(handler.network) == before
    assert [entry.name for entry in tmp_path.iterdir() if entry != path] == []


def halved(dtype):
    return saved(lambda state: {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()})


GOOD = {
    "as saved": saved(lambda state: state),
    "old format": saved(lambda state: state, _use_new_zipfile_serialization=False),
    "wrapped": saved(lambda state: {"epoch": 3, "state_dict": {f"module.{k}": t for k, t in state.items()}}),
    "parameters": saved(lambda state: {**state, key_of(state): torch.nn.Parameter(state[key_of(state)])}),
    "not contiguous": changed(lambda t: t.flip(0).clone().flip(0) if t.ndim < 2 else t.mT.contiguous().mT),
    "without checksums": lambda path, state: _without_checksums(path, state),
}
PRECISIONS = {str(dtype): halved(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)}


def _without_checksums(path, state):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize("bundle", [BTCV, BRATS, FILTER])
@pytest.mark.parametrize("write", GOOD.values(), ids=GOOD)
def test_good_weights_are_loaded_as_they_are(tmp_path, bundle, write):
    handler, state = loader(bundle)
    write(tmp_path / "model.pt", state)
    for tensor in handler.network.state_dict().values():
        tensor.zero_() if tensor.is_floating_point() else None
    load(handler, tmp_path / "model.pt")
    loaded = handler.network.state_dict()
    assert all(torch.equal(loaded[key].nan_to_num(), state[key].nan_to_num()) for key in state)


@pytest.mark.parametrize("write", PRECISIONS.values(), ids=PRECISIONS)
def test_weights_of_any_precision_are_cast_to_the_networks(tmp_path, write):
    handler, state = loader(BTCV)
    write(tmp_path / "model.pt", state)
    load(handler, tmp_path / "model.pt")
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    for key, tensor in handler.network.state_dict().items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, stored[key].to(tensor.dtype))
    handler.network.load_state_dict(state)


@pytest.mark.parametrize(
    "name", ["NaN", "infinite", "int32", "sparse", "expanded", "index of zeros", "flipped byte", "list"]
)
def test_bad_pretrained_weights_are_refused_when_training_starts(tmp_path, name):
    write, message = (FILES | TENSORS | VALUES["swin UNETR"])[name]
    _, state = loader(BTCV)
    settings = {**TINY, **TINY_TRAINING, "pretrained": str(tmp_path / "pretrained.pt"), "is_resumed": False}
    workflow = bundle_workflow(BTCV, ["train.json"], kind="train", **settings)
    workflow.initialize()
    handler = handler_of(workflow, "train#handlers", "PretrainedLoader")
    before = versions(handler.network)
    write(tmp_path / "pretrained.pt", state)
    with pytest.raises(InputError, match=re.escape(message)):
        load(handler, tmp_path / "pretrained.pt")
    assert versions(handler.network) == before


PROGRAM = (
    (BTCV, "NaN"), (BTCV, "quantized"), (BTCV, "pointer of Git LFS"), (BTCV, "zip bomb"), (BTCV, "deep pickle"),
    (BRATS, "infinite"), (BRATS, "pickled code"), (BRATS, "int32"),
    (FILTER, "low above high"), (FILTER, "no votes"), (FILTER, "TorchScript"), (FILTER, "flipped byte"),
)  # fmt: skip


@pytest.mark.hostile
@pytest.mark.parametrize(("bundle", "name"), PROGRAM)
def test_program_ends_with_one_message_and_writes_no_result(torso_data, brain_data, label_data, tmp_path, bundle, name):
    _, state = loader(bundle)
    rows = FILES | TENSORS | next(VALUES[network] for network, bundles in NETWORKS.items() if bundle in bundles)
    write, message = rows[name]
    write(tmp_path / "model.pt", state)
    source = {BTCV: torso_data / "imagesTr", BRATS: brain_data, FILTER: label_data}[bundle]
    folders = {"input": str(source), "output_dir": str(tmp_path / "out"), "ckpt_path": str(tmp_path / "model.pt")}
    words = command_line({**({"workers": 0} if bundle == FILTER else TINY), **folders})
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "bundles" / bundle)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr.partition(f"\nerror: {tmp_path / 'model.pt'}: ")[2]
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.glob("out/*"))
