"""One page of the steps of the demonstration, with their commands, pictures and numbers; it opens from disk."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.common.files import write_text
from scripts.common.organs import ORGANS
from scripts.preview.colors import class_colors

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; background: #000 }} table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd }}
pre {{ background: #f4f4f4; padding: .6rem; white-space: pre-wrap; font-size: 13px }} h2 {{ margin-top: 3rem }}
</style></head><body><h1>{title}</h1>
"""


@dataclass
class Step:
    """A step of the demonstration.

    Attributes:
        title: heading.
        text: what happens and what came out, plain text.
        commands: as they were typed.
        pictures: files to show.
        links: text to file.
        table: numbers to show.
    """

    title: str
    text: str
    commands: Sequence[str] = ()
    pictures: Sequence[Path] = ()
    links: dict[str, Path] = field(default_factory=dict)
    table: pd.DataFrame | None = None


def write_page(path: Path, steps: Sequence[Step], *, title: str) -> None:
    """Write the page; pictures and links are relative to it."""
    parts = [_HEAD.format(title=html.escape(title))]
    for number, step in enumerate(steps, start=1):
        parts.append(f"<h2>{number}. {html.escape(step.title)}</h2>\n<p>{html.escape(step.text)}</p>\n")
        parts += [f"<pre>{html.escape(command)}</pre>\n" for command in step.commands]
        for picture in step.pictures:
            name = html.escape(_relative(picture, path))
            parts.append(f'<p><a href="{name}"><img src="{name}" alt="{html.escape(step.title)}"></a></p>\n')
        if step.table is not None:
            parts.append(step.table.reset_index().to_html(index=False, border=0, float_format="%.3f", na_rep=""))
        for text, target in step.links.items():
            parts.append(f'<p><a href="{html.escape(_relative(target, path))}">{html.escape(text)}</a></p>\n')
    write_text(path, "".join([*parts, "</body></html>\n"]))


def _relative(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


def draw_label_maps(files: dict[str, Path], target: Path) -> None:
    """Draw the middle coronal slice of label maps on one grid side by side, in the colours of the organs.

    Args:
        files: title to a label map of `ORGANS`; 255 is drawn in white.
        target: PNG to write.
    """
    palette = np.zeros((256, 3), np.uint8)
    for label, color in class_colors(ORGANS).items():
        palette[label] = color
    palette[255] = 255
    figure = Figure(figsize=(2.4 * len(files), 5.2), facecolor="black", layout="constrained")
    for axes, (title, path) in zip(figure.subplots(1, len(files)), files.items(), strict=True):
        image = nib.as_closest_canonical(nib.load(path))
        volume = np.asarray(image.dataobj).astype(np.uint8)
        shown = volume[::-1, volume.shape[1] // 2].T  # the patient's right on the left, as in radiology
        width_mm, _, height_mm = image.header.get_zooms()[:3]
        axes.imshow(palette[shown], origin="lower", aspect=float(height_mm / width_mm), interpolation="nearest")
        axes.set_title(title, color="white", fontsize=10)
        axes.axis("off")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def draw_bars(table: pd.DataFrame, target: Path, *, label: str) -> None:
    """Draw a group of horizontal bars for each row of a table, a bar for each column."""
    figure = Figure(figsize=(8, 0.42 * len(table) + 1), layout="constrained")
    axes = figure.subplots()
    for index, column in enumerate(table):
        axes.barh(np.arange(len(table)) + 0.38 * index - 0.19, table[column], height=0.36, label=column)
    axes.set_yticks(range(len(table)), table.index)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.legend(loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
