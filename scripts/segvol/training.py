"""The network as it is trained: an image is encoded once, and all prompts of a step are decoded from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scripts.common.errors import InputError
from scripts.models.clip_tokens import tokenize
from scripts.models.segvol import SegVol
from scripts.segvol.corrections import draw_corrections
from scripts.segvol.samples import PSEUDO

MIXES = ("points+text", "box+text", "text", "box", "points", "box+points")
"""The prompts of an organ; each organ of a step is asked for in all of these ways."""
_PROMPTS = ("points", "point_labels", "boxes")


class PromptedNetwork(nn.Module):
    """Decode all prompts of the samples of a step from one encoding of their images.

    Every organ is asked for by each of `MIXES`; pseudo masks, of which nobody knows a name, in turn by points and by a
    box. With `masks`, every organ is also asked for by `clicks` points, as a user clicks: each of them lies where the
    prediction by those before it is wrong; see `scripts.segvol.corrections`.

    Args:
        network: to train; its text tower stays as it is.
        class_names: class id to the name that is its text.
        use_checkpoint: decode each group of prompts again for its gradient instead of keeping what it computed; at full
            size, where the encoder takes most of the time, it takes little more time and much less memory.

    Shape:
        - image: (B, 1, D, H, W).
        - points, point_labels, boxes, organs: of S masks a sample, as `scripts.segvol.samples.DrawPromptsd` draws them.
        - masks: (B, O, D, H, W), of the organs, or None.
        - Output: logits (B, T, D, H, W), where T is 6 times the organs, mix by mix, once more with `masks`, and then
          the pseudo masks, as `PrepareTargets` arranges the targets.
    """

    def __init__(self, network: SegVol, *, class_names: Mapping[int, str], use_checkpoint: bool = True) -> None:
        super().__init__()
        self.network, self.use_checkpoint = network, use_checkpoint
        rows = torch.zeros(max(class_names) + 1, dtype=torch.int64)
        rows[list(class_names)] = torch.arange(len(class_names))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("tokens", tokenize(list(class_names.values())), persistent=False)
        self.register_state_dict_post_hook(_leave_prefix_out)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(
        self,
        image: torch.Tensor,
        *,
        organs: torch.Tensor,
        masks: torch.Tensor | None = None,
        clicks: int = 0,
        **prompts: torch.Tensor,
    ) -> torch.Tensor:
        """Return the logits of all prompts; see the class."""
        embedding = self.network.encode_image(image)
        named = count_named(organs)
        given = {key: prompts[key][:, :named] for key in _PROMPTS}
        given["text"] = self._texts(organs[:, :named])
        found = [self._decode(embedding, given, mix) for mix in MIXES]
        if masks is not None:
            found.append(self._corrected(embedding, masks, clicks))
        for slot in range(named, organs.shape[1]):
            one = {key: prompts[key][:, slot : slot + 1] for key in _PROMPTS}
            found.append(self._decode(embedding, one, "box" if (slot - named) % 2 else "points"))
        return torch.cat(found, dim=1)

    def _texts(self, organs: torch.Tensor) -> torch.Tensor:
        """Return the embedding of the name of each organ, (B, S, C)."""
        classes, places = self.rows[organs.clamp(min=0)].unique(return_inverse=True)
        with torch.no_grad():
            features = self.network.text_features(self.tokens[classes])
        return self.network.align_text(features)[places]

    def _corrected(self, embedding: torch.Tensor, masks: torch.Tensor, clicks: int) -> torch.Tensor:
        """Return the logits after some clicks, (B, O, D, H, W)."""

        def decode(points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self._decode(embedding, {"points": points, "point_labels": labels}, "points")

        return decode(*draw_corrections(decode, masks, clicks=clicks))

    def _decode(self, embedding: torch.Tensor, prompts: Mapping[str, torch.Tensor], mix: str) -> torch.Tensor:
        """Return the logits of (B, S, ...) prompts, of which a mix is used, (B, S, D, H, W)."""
        kinds = mix.split("+")
        wanted = {"points": "points", "point_labels": "points", "boxes": "box", "text": "text"}
        given = {key: value.flatten(0, 1) for key, value in prompts.items() if wanted[key] in kinds}
        count = prompts["points"].shape[1]
        repeated = embedding.repeat_interleave(count, dim=0)
        if self.use_checkpoint and torch.is_grad_enabled():
            logits = checkpoint(self.network.decode, repeated, use_reentrant=False, **given)
        else:
            logits = self.network.decode(repeated, **given)
        return logits[:, 0].unflatten(0, (-1, count))


def _leave_prefix_out(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Name the weights as the network alone does, so that MONAI FL exchanges those that inference loads."""
    for key in [key for key in state if key.startswith(f"{prefix}network.")]:
        state[prefix + key.removeprefix(f"{prefix}network.")] = state.pop(key)


def _add_prefix(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Undo `_leave_prefix_out` before weights are loaded."""
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(f"{prefix}network.")]:
        state[f"{prefix}network.{key.removeprefix(prefix)}"] = state.pop(key)


def count_named(organs: torch.Tensor) -> int:
    """Return how many of the masks of each sample are organs: pseudo masks are last.

    >>> count_named(torch.tensor([[3, -1, 0, 0]]))
    2
    """
    return int((organs[0] != PSEUDO).sum())


class PrepareTargets:
    """Give the network its prompts, and the loss a target for each of its channels; see `PromptedNetwork`.

    Args:
        clicks: simulated clicks of an organ: 1 to `clicks`, drawn by torch for each step; 0 for none.

    Raises:
        InputError: `clicks` is negative.
    """

    def __init__(self, *, clicks: int = 0) -> None:
        if clicks < 0:
            raise InputError(f"clicks is {clicks}: give 0 or more.")
        self.clicks = clicks

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
        """Return image, targets (B, T, D, H, W) int8, and prompts; as `monai.engines.utils.PrepareBatch`."""
        keys = ("image", "target", "organs", *_PROMPTS)
        moved = {key: batch[key].to(device=device, non_blocking=non_blocking, **options) for key in keys}
        image, target = moved.pop("image"), moved.pop("target")
        named = count_named(moved["organs"])
        masks, times = target[:, :named], len(MIXES)
        if self.clicks:
            moved |= {"masks": masks, "clicks": int(torch.randint(1, self.clicks + 1, ()))}
            times += 1
        return image, torch.cat([masks] * times + [target[:, named:]], dim=1), (), moved
