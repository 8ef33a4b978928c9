"""Measure SegVol at full size: `python -m benchmarks.segvol_network [--only PART]`.

On one core, with random weights: time of the image encoder with plain attention against that of torch's fused one and
of OpenVINO, of a first against a second prompt of the same place, as ratios of alternating runs; peak memory of the
whole way of a CT of 512 x 512 x 300 voxels from file to label map; and what the weights take with and without the text
tower, as a file and loaded. Writes `results/segvol_network.csv`; `--only text_tower` measures the last alone and keeps
the other rows. `--only step` measures a training step, with clicks that correct the prediction and without:
`results/segvol_step.csv`.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser

from scripts.common.files import write_table
from scripts.models.compiled import export_compiled
from scripts.models.segvol import TOWER, TOWER_MARK, SegVol
from scripts.models.weight_files import save
from scripts.models.weights import load_weights
from scripts.segvol.inferer import ZoomInferer
from scripts.segvol.losses import PromptLoss
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.prompts import PromptBook
from scripts.segvol.samples import DrawPromptsd
from scripts.segvol.training import PrepareTargets, PromptedNetwork

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
CT_SHAPE, REPEATS = (512, 512, 300), 3
CLICKS = 10
PROMPTS = [
    Prompt("first", box=(200, 200, 140, 260, 270, 155), class_id=1),
    Prompt("second", points=((230, 240, 148),), box=(205, 200, 140, 262, 270, 156), class_id=1),
]
logger = logging.getLogger("segvol_network")


def full_size() -> SegVol:
    """Return a network of random weights that finds nothing, so that windows lie around the prompt alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = SegVol().eval().requires_grad_(False)
    last = network.mask_decoder.output_hypernetworks_mlps[0].layers[2]
    last.weight.zero_()
    last.bias.zero_()
    return network


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


class _Tokens(torch.nn.Module):
    """The image encoder, with one output."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.encoder(image)[0]


def compiled_encoder(network: SegVol, image: torch.Tensor) -> torch.nn.Module:
    """Return the image encoder compiled by OpenVINO, as the other bundles compile their networks."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "none")
        weights.touch()
        return export_compiled(_Tokens(network.image_encoder).eval(), image, weights, Path(folder, "encoder.ov"))


def encoder_rows() -> list[dict[str, object]]:
    """Compare both kinds of attention of the image encoder and OpenVINO, and the decoder."""
    network, image = full_size(), torch.rand(1, 1, 32, 256, 256)
    embedding, compiled = network.encode_image(image), compiled_encoder(network, image)
    plain, box = "image encoder, plain attention", torch.tensor([[5, 50, 50, 9, 99, 99]])
    ways: dict[str, Callable[[], object]] = {
        plain: lambda: with_attention(network, fused=False).encode_image(image),
        "image encoder, fused attention": lambda: with_attention(network, fused=True).encode_image(image),
        "image encoder, OpenVINO": lambda: compiled(image),
        "decoder": lambda: network.decode(embedding, boxes=box),
    }
    times = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            times[name].append(seconds(way))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    logger.info("seconds of processor time: %s", {name: round(value, 2) for name, value in medians.items()})
    return [{"what": f"time of the {name}", "ratio": value / medians[plain]} for name, value in medians.items()]


def with_attention(network: SegVol, *, fused: bool) -> SegVol:
    """Choose the kind of attention of the image encoder."""
    for block in network.image_encoder.blocks:
        block.attn.use_flash_attention = fused
    return network


def case(folder: str) -> tuple[object, ConfigParser]:
    """Return a CT of random values, preprocessed as the bundle does, and the bundle's config."""
    path = Path(folder, "ct.nii.gz")
    voxels = np.random.default_rng(0).integers(0, 200, CT_SHAPE, dtype=np.int16)
    voxels[:40] = voxels[-40:] = -1000
    nib.save(nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.5, 1])), path.with_suffix(""))
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / "segvol" / "configs" / "inference.json")
    parser["output_dir"] = folder
    return {"image": str(path.with_suffix("")), "case": "ct"}, parser


def whole_case() -> dict[str, float]:
    """Return the time of two prompts of a large CT, and the peak memory of the process."""
    with tempfile.TemporaryDirectory() as folder:
        item, parser = case(folder)
        base = peak_megabytes()
        data = parser.get_parsed_content("preprocessing")(item)
        book = PromptBook()
        book.__dict__["prompts"] = PROMPTS[:1]
        network, inferer = full_size(), ZoomInferer(book)
        found = {"first": [], "second": []}
        for _ in range(REPEATS):
            inferer.embeddings.weights = None  # as for a new case
            for prompt in PROMPTS:
                found[prompt.name].append(seconds(lambda p=prompt: inferer.segment(data["image"][None], network, [p])))
        pred = inferer.segment(data["image"][None], network, PROMPTS[:1])[0]
        parser["prompt_book"] = book
        parser.get_parsed_content("postprocessing")({**data, "pred": pred})
        peak = peak_megabytes()
    return {**{name: float(np.median(values)) for name, values in found.items()}, "peak": peak, "made": base}


def peak_megabytes() -> float:
    """Return the peak memory of this process."""
    return memory_megabytes("VmHWM")


def memory_megabytes(kind: str) -> float:
    """Return the memory of this process: at its peak, `VmHWM`, or now, `VmRSS`."""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def write_without_tower(whole: Path, small: Path) -> None:
    """Write random weights with and without the text tower."""
    state = full_size().state_dict()
    save(state, whole)
    save({key: value for key, value in state.items() if key == TOWER_MARK or not key.startswith(TOWER)}, small)


def loaded(path: Path, text_tower: bool) -> tuple[float, float]:
    """Return by how many megabytes loading a network makes this process larger: afterwards, and at the peak."""
    SegVol(spatial_size=(4, 16, 16), num_layers=1, text_tower=False)  # what is imported and allocated once
    before = memory_megabytes("VmRSS")
    network = SegVol(text_tower=text_tower)
    load_weights(network, path)
    return memory_megabytes("VmRSS") - before, peak_megabytes() - before


def text_tower_rows() -> list[dict[str, object]]:
    """Measure the weights with and without the text tower, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {True: Path(folder, "whole.pt"), False: Path(folder, "small.pt")}
        in_process(write_without_tower, files[True], files[False])
        for text_tower, path in files.items():
            name = "with" if text_tower else "without"
            now, peak = in_process(loaded, path, text_tower)
            values = {"file of the weights": path.stat().st_size / 1e6, "loaded weights": now, "peak of loading": peak}
            rows += [{"what": f"{what}, {name} text tower", "megabytes": value} for what, value in values.items()]
    return rows


def in_process(function: Callable[..., object], *arguments: object) -> object:
    """Call a function in a new process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def training_step(clicks: int) -> tuple[float, float]:
    """Return the processor time in seconds and the peak memory in MB of a step of one volume and four organs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = {1: "spleen", 2: "right kidney", 3: "left kidney", 6: "liver"}
    whole, label = PromptedNetwork(SegVol().train(), class_names=names), torch.zeros(1, 32, 256, 256)
    for place, organ in enumerate(names):
        label[0, 8:20, 40 * place + 40 : 40 * place + 70, 90:150] = organ
    sample = DrawPromptsd(organs=4, seed=0)({"image": torch.rand(label.shape), "label": label})
    optimizer, prepare = torch.optim.AdamW(whole.parameters()), PrepareTargets(clicks=clicks)
    torch.manual_seed(0)  # draws five clicks of up to ten

    def step() -> None:
        image, target, _, prompts = prepare({key: one[None] for key, one in sample.items()})
        PromptLoss()(whole(image, **prompts), target).backward()
        optimizer.step()

    return seconds(step), peak_megabytes()


def measure_step() -> int:
    """Compare a training step with five clicks, about the mean of up to ten, and without."""
    rows = []
    for clicks in (0, CLICKS):
        rows.append((clicks, *in_process(training_step, clicks)))
        logger.info("correction_clicks %d: %.0f s of processor time, peak memory %.0f MB", *rows[-1])
    table = pd.DataFrame(rows, columns=["correction_clicks", "ratio", "megabytes"])
    table["ratio"] /= table["ratio"][0]
    write_table(table, RESULTS / "segvol_step.csv", decimals=3)
    return 0


def main() -> int:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["text_tower", "step"], help="measure a part")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.only == "step":
        return measure_step()
    path = RESULTS / "segvol_network.csv"
    if options.only:
        table = pd.read_csv(path)
        others = table[~table["what"].str.contains("text tower")]
    else:
        others = pd.DataFrame(network_rows())
    table = pd.concat([others, pd.DataFrame(text_tower_rows())])
    write_table(table, path, decimals=3)
    logger.info("\n%s", table.to_string(index=False))
    return 0


def network_rows() -> list[dict[str, object]]:
    """Measure time and memory of the network."""
    whole = in_process(whole_case)
    logger.info("whole case: %s", {name: round(value, 1) for name, value in whole.items()})
    size = " x ".join(map(str, CT_SHAPE))
    rows = encoder_rows()
    rows.append(
        {
            "what": f"time of the first prompt of a CT of {size} against the second",
            "ratio": whole["first"] / whole["second"],
        }
    )
    return [*rows, {"what": f"peak memory of a CT of {size}", "megabytes": whole["peak"]}]


if __name__ == "__main__":
    sys.exit(main())
