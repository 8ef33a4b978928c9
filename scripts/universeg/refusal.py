"""What this bundle does not do, although others do."""

from __future__ import annotations

from typing import NoReturn

from scripts.common.errors import InputError


def refuse_etta() -> NoReturn:
    """Refuse entropy test-time adaptation.

    Raises:
        InputError: always.
    """
    raise InputError(
        "etta.json: entropy test-time adaptation changes the normalization layers of a network, and UniverSeg has "
        "none; leave etta.json out, and give more support or a larger ensemble instead."
    )
