"""Convert published weights of SegVol to the plain state dict that the bundle loads.

    python -m scripts.convert_segvol SegVol_v1.pth models/model.pt

Also read are `pytorch_model.bin` of Hugging Face, and `ViT_pretrain.ckpt`, of which the image encoder is written: the
names of MONAI's ViT, after `--prefix`: `image_encoder.` to start a training of SegVol, `vit.` one of UNETR. Whatever
else a file holds, none of its code is imported or run.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from scripts.common.errors import InputError
from scripts.common.flags import parse_flag
from scripts.common.organs import spoken_names
from scripts.models.conversion import check_target, exit_code, write_weights
from scripts.models.module_pickle import load_published_file
from scripts.models.segvol import TOWER, TOWER_MARK, SegVol, image_encoder
from scripts.models.text_features import write_text_features
from scripts.models.weights import check_state_dict

logger = logging.getLogger(__name__)
_State = Mapping[str, torch.Tensor]
_ENCODER = re.compile(r"^encoder\.|(?:^|.*\.)model\.encoder\.")
_POSITIONS = "text_encoder.clip_text_model.text_model.embeddings.position_ids"  # of transformers before 4.31


def convert(
    source: str | Path,
    target: str | Path,
    *,
    prefix: str = "",
    text_features: str | Path = "",
    texts: Sequence[str] = (),
    text_tower: bool = True,
) -> int:
    """Convert weights, after checking that they fit the published network, or its image encoder, exactly.

    Args:
        source: published file.
        target: file to write; an existing one is replaced.
        prefix: of the names of an image encoder alone.
        text_features: file to write the features of the organs' names to, see `scripts.models.text_features`; "": none.
        texts: other texts whose features to write there.
        text_tower: write the weights of the text tower, which stored features make superfluous.

    Returns:
        The number of tensors written.

    Raises:
        InputError: there is no such source, it cannot be read or fits neither, a target is the source or cannot be
            written, or the tower or texts are given without a file of features.
    """
    source, target = Path(source), Path(target)
    for path in (target, *([Path(text_features)] if str(text_features) else [])):
        check_target(source, path)
    if not text_features and (texts or not text_tower):
        raise InputError("texts, and weights without the text tower, need text_features: give the file to write.")
    state = load_published_file(source)
    encoder = {_ENCODER.sub("", key): value for key, value in state.items() if _ENCODER.match(key)}
    if encoder and text_features:
        raise InputError(f"{source}: holds an image encoder alone, without texts: leave text_features out.")
    state = encoder or _of_segvol(state)
    with torch.device("meta"):
        network = _encoder() if encoder else SegVol()
    check_state_dict(network, state, source)
    if text_features:
        network.load_state_dict(state, assign=True)
        write_text_features(network.float().eval(), [*spoken_names(), *texts], Path(text_features))
    names = [key for key in network.state_dict() if text_tower or key == TOWER_MARK or not key.startswith(TOWER)]
    plain = {name: state[name].clone(memory_format=torch.contiguous_format) for name in names}
    write_weights({f"{prefix if encoder else ''}{name}": tensor for name, tensor in plain.items()}, target)
    return len(plain)


def _of_segvol(state: _State) -> dict[str, torch.Tensor]:
    """Return the weights of the whole network under their own names."""
    names = {key: key.removeprefix("model.") for key in state}
    return {name: state[key] for key, name in names.items() if name != _POSITIONS}


def _encoder() -> torch.nn.Module:
    sizes = {"hidden_size": 768, "mlp_dim": 3072, "num_layers": 12, "num_heads": 12}
    return image_encoder((32, 256, 256), (4, 16, 16), **sizes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code, 2 where nothing was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m scripts.convert_segvol", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path, help="published file, e.g. SegVol_v1.pth")
    parser.add_argument("target", type=Path, help="file to write, e.g. models/model.pt")
    parser.add_argument("--prefix", default="", help="of the names of an image encoder alone, e.g. image_encoder.")
    parser.add_argument(
        "--text_features", default="", help="also write what the text tower makes of names, e.g. models/texts.pt"
    )
    parser.add_argument("--texts", nargs="+", default=[], help="other texts than names of organs, e.g. 'liver tumor'")
    parser.add_argument(
        "--text_tower",
        type=parse_flag,
        default=True,
        help="write the weights of the text tower, which are not needed where text_features is given (default: true)",
    )
    options = parser.parse_args(argv)
    more = {key: getattr(options, key) for key in ("prefix", "text_features", "texts", "text_tower")}
    return exit_code(
        lambda: logger.info("wrote %d tensors: %s", convert(options.source, options.target, **more), options.target)
    )
