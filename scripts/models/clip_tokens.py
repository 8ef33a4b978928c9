"""Tokens of CLIP for names of organs, by a package that holds CLIP's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from scripts.common.errors import InputError

if TYPE_CHECKING:
    from instant_clip_tokenizer import Tokenizer

SENTENCE = "A computerized tomography of a {}."
END = 49407


def tokenize(names: Sequence[str], *, sentence: str = SENTENCE) -> torch.Tensor:
    """Return the tokens of sentences that name organs.

    Args:
        names: such as "left kidney".
        sentence: that the network was trained with; `{}` is the name.

    Shape:
        (B, L), int64: shorter sentences are filled up with the token of their end.

    Raises:
        InputError: a name is empty, or the package is not installed.

    >>> tokenize(["liver"]).tolist()
    [[49406, 320, 11639, 704, 7690, 999, 22399, 539, 320, 12639, 269, 49407]]
    """
    if empty := [name for name in names if not name.strip()]:
        raise InputError(f"the text {empty[0]!r} is empty: give the name of an organ.")
    tokenizer = _tokenizer()
    tokens = [
        [tokenizer.start_of_text(), *tokenizer.encode(sentence.format(" ".join(name.split()))), tokenizer.end_of_text()]
        for name in names
    ]
    return pad_sequence([torch.tensor(row) for row in tokens], batch_first=True, padding_value=END)


@cache
def _tokenizer() -> Tokenizer:
    try:
        from instant_clip_tokenizer import Tokenizer  # here: not needed where the features of texts are stored
    except ImportError as error:
        raise InputError(
            "texts need the package instant-clip-tokenizer: install it, or give text_features, a file that holds those "
            "of the names."
        ) from error
    return Tokenizer()
