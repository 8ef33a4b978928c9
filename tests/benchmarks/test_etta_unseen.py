import pandas as pd
import pytest
import torch

from benchmarks.etta.networks import normalize
from benchmarks.etta.unseen import UNSEEN, Scan
from benchmarks.etta_input import interval, summarise, targets


def scan(seed=0):
    hu = torch.full((1, 1, 40, 40, 40), -1000.0)
    hu[..., 2:38, 2:38, :] = 40
    hu[..., 14:24, 14:24, 10:30] = 110
    label = torch.zeros(40, 40, 40, dtype=torch.long)
    label[14:24, 14:24, 10:30] = 6
    return Scan(hu, label, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", UNSEEN)
def test_shift_changes_the_windowed_image_more_with_strength_and_repeats(name):
    shift, strengths = UNSEEN[name]
    plain = normalize(scan().hu)
    found = [normalize(shift(scan(), strength)) for strength in strengths]
    assert all(image.shape == plain.shape and image.isfinite().all() for image in found)
    assert torch.equal(found[0], normalize(shift(scan(), strengths[0])))
    changes = [float((image - plain).abs().mean()) for image in found]
    if name == "clean":
        assert changes == [0, 0, 0]
    else:
        assert min(changes) > 1e-4
        assert changes[2] > changes[0] * 0.99


def rows(changes, *, lost=5.0):
    cells = [("net", case, shift, change) for case, shift, change in changes]
    table = pd.DataFrame(cells, columns=["network", "case", "shift", "change"])
    return table.assign(
        way="input", plain=80.0, accepted=True, lost=[0 if s == "clean" else lost for s in table["shift"]]
    )


def test_interval_is_of_cases_not_of_images():
    table = rows([(case, shift, float(case)) for case in (0, 1) for shift in ("a", "b", "c", "d")])
    assert interval(table) == (0, 1)


def test_targets_are_judged_by_shift_and_image():
    table = rows([(0, "clean", 0.0), (0, "a", 3.0), (1, "a", 5.0), (0, "b", -2.5), (1, "b", 1.0)])
    found = targets(table, "input", None).set_index("target")
    assert found.loc["mean change where plain lost 3 or more", "measured"] == pytest.approx(6.5 / 4)
    assert found.loc["worst shift: b", "measured"] == pytest.approx(-0.75)
    assert found["met"].tolist() == [False, False, True, False]
    assert summarise(table, "shift").set_index("shift").loc["a", "change"] == 4
