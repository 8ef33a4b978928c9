import itertools

import numpy as np
import pytest

from scripts.io.masks import combine_masks, in_order

IDS = {"spleen": 1, "liver": 5, "rib_1": 20, "rib_2": 20}
CELLS = {"spleen": (0, 1), "liver": (1, 2), "rib_1": (2, 3), "rib_2": (3, 4), "brain": (0, 1, 2, 3, 4, 5), "skull": ()}


def mask(name):
    found = np.zeros((7, 1, 1), bool)
    found[list(CELLS[name])] = True
    return found


@pytest.mark.parametrize("names", list(itertools.permutations(CELLS))[::97])
@pytest.mark.parametrize("ignore_id", [255, 300])
def test_highest_id_is_kept_and_what_has_no_id_is_ignored_where_nothing_else_is(names, ignore_id):
    order = in_order(names, IDS, ignore_id=ignore_id)
    masks = ((name, label, mask(name)) for name, label in order)
    found = combine_masks(masks, (7, 1, 1), ignore_id=ignore_id, highest_id=20)
    assert found.labels.ravel().tolist() == [1, 5, 20, 20, 20, ignore_id, 0]
    assert found.labels.dtype == (np.uint8 if ignore_id == 255 else np.uint16)
    assert found.voxels == {name: len(cells) for name, cells in CELLS.items() if cells}
    assert found.overlap == 2  # not where two ribs are one organ, nor where an ignored one lies below
