"""The organs of every bundle: what a config's `channel_def` says, turned into what transforms need."""

from __future__ import annotations

from collections.abc import Mapping


def foreground_classes(channel_def: Mapping[str, str]) -> dict[int, str]:
    """Turn the metadata's `channel_def` into class ids and names without the background.

    Args:
        channel_def: channel index, as a string, to class name; `"0"` is the background.

    Returns:
        Class id to name, by ascending id.
    """
    return {int(k): name for k, name in sorted(channel_def.items(), key=lambda kv: int(kv[0])) if int(k) > 0}


def left_right_pairs(channel_def: Mapping[str, str]) -> list[tuple[int, int]]:
    """Find the classes that exchange their labels when a patient is mirrored.

    Args:
        channel_def: channel index to class name; partners differ only in the words `right` and `left`.

    Returns:
        Pairs of class ids (right, left).

    Raises:
        ValueError: a `right …` class has no `left …` partner, or the other way round.
    """
    by_name = {name.lower(): int(k) for k, name in channel_def.items()}
    pairs, sided = [], set()
    for name, index in by_name.items():
        words = name.split()
        if "right" in words:
            partner = " ".join("left" if word == "right" else word for word in words)
            if partner not in by_name:
                raise ValueError(f"class {index} '{name}' has no partner '{partner}': add it to channel_def.")
            pairs.append((index, by_name[partner]))
            sided |= {index, by_name[partner]}
        elif "left" in words:
            sided.add(index)
    lonely = sided - {index for pair in pairs for index in pair}
    if lonely:
        raise ValueError(f"classes {sorted(lonely)} are 'left' without a 'right' partner: add it to channel_def.")
    return sorted(pairs)
