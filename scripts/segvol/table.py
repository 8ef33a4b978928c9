"""What each prompt gave, as a table."""

from __future__ import annotations

from pathlib import Path

from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.inference.case_handler import case_name, decollated, source_path
from scripts.inference.table_handler import LongTableHandler
from scripts.segvol.masks import FOUND

COLUMNS = ("name", "class_id", "prompt", "text", "voxels", "volume_ml", "confidence", "shared_voxels")


class PromptTable(LongTableHandler):
    """Write `prompts.csv`: a row per case and prompt.

    Columns: `case`, `name`, `class_id`, `prompt` (such as `box+text`), `text`, `voxels`, `volume_ml`, `confidence`
    (mean probability in the voxels, empty if there are none), `shared_voxels` (those that belong to other prompts too).

    Args:
        output_dir: folder of the table.

    Raises:
        InputError: when the run starts, if the table of earlier runs is damaged or has other columns.
    """

    event = IterationEvents.MODEL_COMPLETED  # what fails here fails the case

    def __init__(self, output_dir: str | Path) -> None:
        super().__init__(Path(output_dir) / "prompts.csv", COLUMNS, decimals=3)

    def __call__(self, engine: Engine) -> None:
        """Add the prompts of the cases of one iteration and rewrite the table."""
        for batch_item, output_item in decollated(engine):
            rows = [
                {
                    "name": one.prompt.name,
                    "class_id": one.prompt.class_id,
                    "prompt": one.prompt.kind,
                    "text": one.prompt.text,
                    "voxels": one.voxels,
                    "volume_ml": one.volume_ml,
                    "confidence": one.confidence,
                    "shared_voxels": one.shared,
                }
                for one in output_item[FOUND]
            ]
            self.add(case_name(batch_item), rows, source=source_path(batch_item))
