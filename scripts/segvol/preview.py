"""Pictures of what prompts gave, with points and boxes drawn in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.grids import Grid
from scripts.preview.handler import Drawn, PreviewSaver
from scripts.preview.marks import Mark
from scripts.preview.png import preview_png
from scripts.segvol.frames import place
from scripts.segvol.prompts import PromptBook


class PromptPreviewSaver(PreviewSaver):
    """Write `<case>_preview.png` with the points and boxes of the prompts; see `PreviewSaver`.

    A label of the case is not drawn: prompts have class ids of their own.

    Args:
        prompts: of each case.
        options: as `PreviewSaver`.
    """

    def __init__(self, *, prompts: PromptBook, **options: Any) -> None:
        super().__init__(class_names=prompts.class_names, label_key="", **options)
        self.prompts = prompts

    def write_png(self, drawn: Drawn, path: Path) -> None:
        """Write the picture of a case."""
        marks = []
        grid = Grid(drawn.image.shape, np.asarray(drawn.affine))
        for prompt in self.prompts.of(drawn.case):
            at = place(prompt, file=grid, working=grid)
            marks.append(Mark(prompt.class_id, at.points[at.labels == 1], at.points[at.labels == 0], at.box))
        preview_png(drawn.image, drawn.pred, path, title=drawn.case, marks=marks, **self._options(drawn))
