"""Segment what prompts mean in a volume: first in the whole volume at low resolution, then in windows around it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch.nn.functional import interpolate

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.grids import Grid
from scripts.common.progress import progress_bar
from scripts.io.memory import free_bytes
from scripts.models.segvol import SegVol
from scripts.models.text_features import TextFeatures
from scripts.segvol.coarse import QUANTA, Coarse, quantized
from scripts.segvol.embeddings import Embeddings
from scripts.segvol.frames import Placed, box_of, place, reflected, zoomed_out
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.prompts import PromptBook
from scripts.segvol.viewer import file_grid, prompts_of
from scripts.segvol.windows import Zoom, cut, inside, published_windows, windows_around

Overlaps = Literal["files", "largest"]
OVERLAPS: tuple[Overlaps, ...] = get_args(Overlaps)
EMPTY_BOX = np.full(6, -1)
logger = logging.getLogger(__name__)


class ZoomInferer(Inferer):
    """Predict the probability of each prompt.

    The volume, resized to the network's size, gives a first result. Then windows around what it shows are predicted at
    full resolution, with the part of the prompt that lies in them; where only the first result lies in a window, its
    box is the prompt. The windows replace the first result. Where that shows nothing, windows lie around the box or
    the positive points; of a text alone, nothing is found.

    Embeddings of windows are kept, so that another prompt of the same place takes the decoder alone.

    Args:
        prompts: of each case.
        text_features: file of stored features of texts, see `scripts.models.text_features.TextFeatures`; "": none.
        zoom_in: predict windows too; also "true" or "false".
        parity: as the published code, with its faults: see `published_windows`; and a window without prompt gets a box
            of -1. Its positive points are not drawn at random, as they are those of the user.
        overlaps: "files": return all prompts; "largest": of each voxel only the most probable one.
        kept_embeddings: number of windows whose embeddings are kept; at full size one has 6.3 MB.
        progress: whether to show the windows that are done.

    Shape:
        inputs: (1, 1, D, H, W) with affine and metadata, in 0..1, become uint8 (1, C, D, H, W): of "files", a channel
        of probabilities of each prompt, in 1/255; of "largest", class ids and probability.

    Raises:
        InputError: another choice; while predicting: a prompt lies outside, on air only, or the image has no grid.

    Source:
        Du et al., arXiv:2311.13385, section on zoom-out-zoom-in. Departures, unless `parity`: windows have fixed places
        and show what lies around; points of both kinds and boxes may be joined; windows without a prompt are left out.
    """

    def __init__(
        self,
        prompts: PromptBook,
        *,
        text_features: str | Path = "",
        zoom_in: bool | str = True,
        parity: bool | str = False,
        overlaps: Overlaps = "files",
        kept_embeddings: int = 64,
        progress: bool = False,
    ) -> None:
        if overlaps not in OVERLAPS:
            raise InputError(f"overlaps is {overlaps!r}: give one of {', '.join(OVERLAPS)}.")
        self.prompts, self.texts, self.overlaps = prompts, TextFeatures(text_features), overlaps
        self.zoom_in, self.parity = parse_flag(zoom_in, "zoom_in"), parse_flag(parity, "parity")
        self.progress, self.embeddings = progress, Embeddings(kept_embeddings)

    def __call__(self, inputs: torch.Tensor, network: SegVol, *_: object, **__: object) -> torch.Tensor:
        """Predict the prompts of one case."""
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1):
            raise InputError(f"the image has shape {tuple(inputs.shape)}: give one image (1, 1, D, H, W).")
        return self.segment(inputs, network, prompts_of(getattr(inputs, "meta", {}), self.prompts))

    def segment(self, inputs: torch.Tensor, network: SegVol, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Predict some prompts of an image; see the class for shapes."""
        if not prompts:
            raise InputError("the case has no prompt: give a text, a point or a box.")
        network = getattr(network, "module", network)
        image = convert_to_tensor(inputs, track_meta=False)[0, 0]
        placed = [_placed(prompt, inputs, image) for prompt in prompts]  # all are checked before any is predicted
        named = [prompt.text for prompt in prompts]
        texts = self.texts(network, [text for text in named if text]) if any(named) else None
        self.embeddings.use(image, network)
        found = _Found(prompts, image.shape, self.overlaps)
        row = 0
        with progress_bar(desc="windows", leave=False, disable=not self.progress) as bar:
            for index, (prompt, at) in enumerate(zip(prompts, placed, strict=True)):
                text = texts[row : row + 1] if prompt.text and texts is not None else None
                row += bool(prompt.text)
                found.add(index, _Pass(self, network, image, at, text, bar.update).probability())
        return found.result[None]


class _Pass:
    """One prompt on its way through the zoom-out and the windows."""

    def __init__(
        self,
        inferer: ZoomInferer,
        network: SegVol,
        image: torch.Tensor,
        at: Placed,
        text: torch.Tensor | None,
        done: Any,
    ) -> None:
        self.inferer, self.network, self.image, self.at, self.text = inferer, network, image, at, text
        self.window, self.done = network.spatial_size, done

    def probability(self) -> torch.Tensor:
        """Return the probability of the whole volume in 1/255, (D, H, W), on the CPU."""
        shape = self.image.shape
        small = zoomed_out(self.at, shape, self.window)
        coarse = Coarse(self.decoded("whole", self.whole, small), shape, aligned=not self.inferer.parity)
        result = coarse.spread(quantized(coarse.logits))
        zoom = self.zoom(small, coarse) if self.inferer.zoom_in else None
        if zoom is not None:
            area, logits = self.zoomed(coarse, zoom)
            result[area] = quantized(logits)
        return result

    def zoom(self, small: Placed, coarse: Coarse) -> Zoom | None:
        """Choose windows, if there is something to look at."""
        shape, seen = self.image.shape, coarse.box()
        if not self.inferer.parity:
            region = _union([seen, self.at.box, _around(self.at)])
            return None if region is None else windows_around(region, shape, self.window)
        if small.box is not None:
            self.at = Placed(self.at.points, self.at.labels, reflected(small.box, self.window, shape))
        return None if seen is None else published_windows(seen, shape, self.window)

    def zoomed(self, coarse: Coarse, zoom: Zoom) -> tuple[tuple[slice, ...], torch.Tensor]:
        """Return the part of the volume that windows show, and its logits: the mean of the windows that see a voxel."""
        low = np.min(zoom.starts, axis=0).clip(zoom.low)
        high = (np.max(zoom.starts, axis=0) + self.window).clip(max=zoom.high + 1)
        area = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        total = self.image.new_zeros([part.stop - part.start for part in area])
        count = torch.zeros_like(total, dtype=torch.uint8)
        for start in zoom.starts:
            inner, outer = inside(start, self.window, zoom)
            seen = self.image.new_zeros(self.window)
            seen[inner] = coarse.at(outer)
            prompt = self.prompt_in(start, zoom, seen > 0)
            if prompt is not None:
                window = partial(cut, self.image, start, self.window, zoom)
                key = (tuple(start), tuple(zoom.low), tuple(zoom.high))
                into = tuple(slice(o.start - a.start, o.stop - a.start) for o, a in zip(outer, area, strict=True))
                total[into] += self.decoded(key, window, prompt)[inner]
                count[into] += 1
        return area, torch.where(count > 0, total / count.clamp(min=1), coarse.at(area))

    def prompt_in(self, start: Sequence[int], zoom: Zoom, seen: torch.Tensor) -> Placed | None:
        """Return points and box of the prompt in a window, or None if it means nothing there.

        Args:
            start: first voxel of the window.
            zoom: that it is of.
            seen: what the whole volume showed in it, (D, H, W).
        """
        single = len(zoom.starts) == 1
        if self.inferer.parity:
            own = self.at.moved(zoom.shift if single else start)
            keep = (own.labels == 1) & ((own.points >= 0) & (own.points < self.window)).all(axis=1)
            points, labels = own.points[keep], own.labels[keep]
            if own.box is not None and single:
                return Placed(points, labels, own.box)
            if own.box is None and not len(own.points):
                return Placed(points, labels, None)  # of a text alone
            box = box_of(seen)
            return Placed(points, labels, EMPTY_BOX if box is None else box)
        own = self.at.moved(start).within(self.window)
        if self.at.box is None and not len(self.at.points):
            return own
        if own.box is None or not single:
            box = box_of(seen)
            own = Placed(own.points, own.labels, own.box if box is None else box)
        positive = (own.labels == 1).any()
        return own if own.box is not None or positive or self.text is not None else None

    def whole(self) -> torch.Tensor:
        """Return the volume resized to a window."""
        return interpolate(self.image[None, None], size=self.window, mode="nearest-exact")[0, 0]

    def decoded(self, key: Any, window: Callable[[], torch.Tensor], prompt: Placed) -> torch.Tensor:
        """Return the logits of a window, (D, H, W), which is only made if its embedding is not known."""
        embedding = self.inferer.embeddings.get(key, lambda: window()[None, None], self.network)
        self.done()
        return self.network.decode(embedding, **prompt.tensors(self.image.device), text=self.text)[0, 0].float()


class _Found:
    """Probabilities of all prompts, or the most probable one of each voxel; see `ZoomInferer`."""

    def __init__(self, prompts: Sequence[Prompt], shape: Sequence[int], overlaps: Overlaps) -> None:
        self.ids, self.largest = [prompt.class_id for prompt in prompts], overlaps == "largest"
        if self.largest and max(self.ids) > QUANTA:
            raise InputError(f"a class_id is {max(self.ids)}: with overlaps largest, give at most {QUANTA}.")
        needed, free = len(prompts) * math.prod(shape), free_bytes()
        if not self.largest and needed > free:
            raise InputError(
                f"{len(prompts)} prompts need {needed / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free: give "
                "fewer at once, or set overlaps to largest."
            )
        self.result = torch.zeros(2 if self.largest else len(prompts), *shape, dtype=torch.uint8)

    def add(self, index: int, probability: torch.Tensor) -> None:
        """Add one prompt's, uint8 (D, H, W)."""
        if not self.largest:
            self.result[index] = probability
            return
        wins = (probability > self.result[1]) & (probability > QUANTA // 2)
        self.result[0][wins] = self.ids[index]
        self.result[1][wins] = probability[wins]


def _placed(prompt: Prompt, inputs: torch.Tensor, image: torch.Tensor) -> Placed:
    """Bring a prompt into the image; see `scripts.segvol.frames.place`."""
    if not prompt.points and not prompt.negative and not prompt.box:
        return Placed(np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.int64), None)
    file = file_grid(inputs.meta) if isinstance(inputs, MetaTensor) else None
    if file is None:
        raise InputError("the image does not say where its voxels lie: load it with LoadVolumed.")
    affine = np.asarray(inputs.affine, dtype=np.float64).reshape(-1, 4, 4)[0]
    working = Grid(tuple(image.shape), affine)
    at = place(prompt, file=file, working=working)
    positive = at.points[at.labels == 1].tolist()
    if positive and all(_on_air(image, *point) for point in positive):
        raise InputError(f"{prompt.name}: all its points lie on air; move them onto the structure.")
    return at


def _on_air(image: torch.Tensor, d: int, h: int, w: int) -> bool:
    """Return whether nothing lies between a voxel and one of the four sides of its slice; the lungs have a wall."""
    row, column = image[d, h], image[d, :, w]
    return any(not side.any() for side in (row[: w + 1], row[w:], column[: h + 1], column[h:]))


def _around(at: Placed) -> np.ndarray | None:
    """Return the box of the positive points."""
    points = at.points[at.labels == 1]
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else None


def _union(boxes: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return the box of several."""
    given = np.array([box for box in boxes if box is not None])
    return np.concatenate([given[:, :3].min(axis=0), given[:, 3:].max(axis=0)]) if len(given) else None
