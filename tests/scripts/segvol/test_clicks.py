import numpy as np

from scripts.segvol.clicks import next_click, simulate_clicks


def ball(shape, centre, radius):
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


LABEL = ball((20, 24, 28), (10, 12, 14), 6)


def test_first_click_is_in_the_middle_and_positive():
    place, kind = next_click(np.zeros_like(LABEL), LABEL)
    assert place.tolist() == [10, 12, 14]
    assert kind == 1


def test_click_is_negative_where_the_prediction_is_too_much():
    place, kind = next_click(LABEL | ball(LABEL.shape, (3, 4, 4), 3), LABEL)
    assert place.tolist() == [3, 4, 4]
    assert kind == 0


def test_larger_region_is_clicked_first_and_kinds_are_not_joined():
    pred = LABEL.copy()
    pred[10:] = False  # missing: half of the ball; too much: a slab that touches it
    pred[8:10, :4] = True
    place, kind = next_click(pred, LABEL)
    assert kind == 1
    assert place[0] >= 10


def test_nothing_is_wrong():
    assert next_click(LABEL, LABEL) is None


def test_thick_slices_decide_what_is_the_middle():
    region = np.zeros((3, 9, 9), dtype=bool)
    region[:, 2:5, 2:5] = True
    region[1, 2:9, 2:9] = True
    fine, thick = (next_click(region * False, region, spacing)[0] for spacing in ((1, 1, 1), (9, 1, 1)))
    assert fine.tolist() == [1, 3, 3]
    assert thick.tolist() == [1, 5, 5]


def test_clicks_collect_until_nothing_is_wrong():
    asked = []

    def predict(points, labels):
        asked.append((len(points), labels.tolist()))
        return LABEL if len(points) > 2 else LABEL | ball(LABEL.shape, (2, 3, 3), 4 - len(points))

    found = list(simulate_clicks(predict, LABEL, clicks=5))
    assert len(found) == 5
    assert asked == [(1, [1]), (2, [1, 0]), (3, [1, 0, 0])]
    assert (found[-1] == LABEL).all()
