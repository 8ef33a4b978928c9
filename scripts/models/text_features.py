"""What the frozen text tower of SegVol makes of names of organs, computed when needed or stored in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from scripts.common.errors import InputError
from scripts.common.names import printable
from scripts.models.clip_tokens import SENTENCE, tokenize
from scripts.models.segvol import TOWER_MARK, SegVol
from scripts.models.weight_files import read_file, save

_NAMES_AT_ONCE = 16


class TextFeatures:
    """Embeddings of texts: from a file where it has them, else by tokenizer and text tower, each text once.

    The tower is never trained, so that a file serves all weights that were fine-tuned from the same.

    Args:
        path: of a file that `write_text_features` wrote; "": none.

    Raises:
        InputError: there is no such file; when it is used: it cannot be read or is of another text tower, or it lacks
            a text and the network was made without the text tower, or the text cannot be tokenized.
    """

    def __init__(self, path: str | Path = "") -> None:
        self.path = Path(path) if str(path) else None
        if self.path and not self.path.exists():
            raise InputError(
                f"{printable(path)}: no such file; set text_features to one that --text_features of "
                "scripts.convert_segvol wrote, or leave it out."
            )
        self._stored: dict[str, dict[str, torch.Tensor]] = {}  # of a tower, text to features

    def __call__(self, network: SegVol, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of texts, (len(texts), C), on the network's device."""
        known = self._of_tower(network)
        texts = [" ".join(text.lower().split()) for text in texts]
        if missing := sorted({text for text in texts if text not in known}):
            if not network.has_text_tower:
                lacks = f"{printable(self.path or 'text_features')}: lacks the text {missing[0]!r:.100}"
                raise InputError(
                    f"{lacks}: write it again with --texts of scripts.convert_segvol, or leave text_features out, for "
                    "which the whole weights and the package instant-clip-tokenizer are needed."
                )
            known |= compute(network, missing)
        device = next(network.parameters()).device
        return network.align_text(torch.stack([known[text] for text in texts]).to(device))

    def _of_tower(self, network: SegVol) -> dict[str, torch.Tensor]:
        tower = tower_digest(network.state_dict())
        if tower not in self._stored:
            width = network.text_encoder.dim_align.in_features
            self._stored[tower] = read_text_features(self.path, tower, width) if self.path else {}
        return self._stored[tower]


@torch.no_grad()
def compute(network: SegVol, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the features of texts, (text_width,) each, on the CPU."""
    found, device = {}, next(network.parameters()).device
    for start in range(0, len(texts), _NAMES_AT_ONCE):
        some = texts[start : start + _NAMES_AT_ONCE]
        found |= dict(zip(some, network.text_features(tokenize(some).to(device)).float().cpu(), strict=True))
    return found


def write_text_features(network: SegVol, names: Sequence[str], path: Path) -> None:
    """Store the features of texts."""
    texts = sorted({" ".join(name.lower().split()) for name in names})
    content = {"features": compute(network, texts), "sentence": SENTENCE, "tower": tower_digest(network.state_dict())}
    save(content, path)


def read_text_features(path: Path, tower: str, width: int) -> dict[str, torch.Tensor]:
    """Read stored features.

    Args:
        path: of the file.
        tower: `tower_digest` of the network that they are for.
        width: number of features of a text.

    Raises:
        InputError: it cannot be read, is no such file or of another tower.
    """
    content = read_file(path)
    features = content.get("features") if isinstance(content, Mapping) else None
    if not isinstance(features, Mapping) or not all(_is_feature(value) for value in features.values()):
        raise InputError(
            f"{printable(path)}: holds no text features: give a file that scripts.convert_segvol --text_features wrote."
        )
    widths = {len(value) for value in features.values()} - {width}
    if content.get("tower") != tower or content.get("sentence") != SENTENCE or widths:
        raise InputError(
            f"{printable(path)}: holds the text features of other weights: write it again with --text_features of "
            "scripts.convert_segvol."
        )
    return dict(features)


def _is_feature(value: object) -> bool:
    """Return whether it is a vector of numbers."""
    is_vector = isinstance(value, torch.Tensor) and value.ndim == 1 and value.dtype == torch.float32
    return is_vector and bool(value.isfinite().all())


def tower_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return a digest that differs between text towers, of a small part of their weights."""
    return hashlib.sha256(state[TOWER_MARK].detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
