import numpy as np
import pytest

from scripts.solf.lookup import count_labels, replace_labels


def views(label):
    """The same shape in several orders of memory, one with gaps."""
    return {
        "F": np.asfortranarray(label),
        "C": np.ascontiguousarray(label),
        "turned": np.ascontiguousarray(label.transpose(1, 0, 2)).transpose(1, 0, 2),
        "gaps": np.repeat(label, 2, axis=1)[:, ::2],
        "reversed": np.ascontiguousarray(label[::-1])[::-1],
    }


@pytest.mark.parametrize("to", [np.uint8, np.uint16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["F", "C", "turned", "gaps", "reversed"])
def test_labels_are_replaced_and_counted_as_by_numpy(dtype, to, order):
    rng = np.random.default_rng(0)
    high = np.iinfo(dtype).max
    label = views(rng.choice([0, 1, 7, high], (5, 6, 7)).astype(dtype))[order]
    before, values = label.copy(), rng.integers(0, np.iinfo(to).max, high + 1).astype(to)
    replaced = replace_labels(label, values)
    np.testing.assert_array_equal(replaced, values[before])
    np.testing.assert_array_equal(label, before)
    assert replaced.dtype == to
    ids, counts = np.unique(label[label > 0], return_counts=True)
    assert count_labels(label) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
