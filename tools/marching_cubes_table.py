"""Generate the triangulation in `scripts/solf/marching_cubes.py`: `python -m tools.marching_cubes_table`.

It takes each cell from scikit-image, which is therefore needed here and in tests, but not to run a bundle.
"""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
from skimage.measure import marching_cubes

from scripts.common.files import atomic_path
from scripts.solf.marching_cubes import CORNERS, EDGE_LETTERS, EDGE_MIDPOINTS

MODULE = Path(__file__).resolve().parents[1] / "scripts" / "solf" / "marching_cubes.py"
TABLE = re.compile(r'(?<=_TRIANGLES = """\\\n)[^"]*(?=""")')
logger = logging.getLogger(__name__)


def cell_triangles(configuration: int) -> str:
    """Return one cell's triangles, three letters each, normals outward, or `-` where there are none.

    Args:
        configuration: 0 to 255, bit n set where corner n of `CORNERS` is inside.
    """
    if configuration in (0, 255):
        return "-"
    cell = np.zeros((2, 2, 2))
    cell[tuple(CORNERS.T)] = [configuration >> bit & 1 for bit in range(8)]
    vertices, faces, _, _ = marching_cubes(cell, 0.5, method="lorensen", gradient_direction="ascent")
    letters = [EDGE_LETTERS[int(np.abs(EDGE_MIDPOINTS - vertex).sum(axis=1).argmin())] for vertex in vertices]
    return "".join(letters[vertex] for vertex in faces.ravel())


def main() -> int:
    """Replace the table in the module."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = " ".join(cell_triangles(configuration) for configuration in range(256))
    text = MODULE.read_text(encoding="utf-8")
    with atomic_path(MODULE) as temporary:
        temporary.write_text(TABLE.sub(textwrap.fill(words, 118) + "\n", text), encoding="utf-8")
    logger.info("wrote %s: %d characters of table", MODULE, len(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
