import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.segvol.prompt_sampling import MAX_POINTS, draw_points, jittered_box, jittered_points, tight_box


def mask(shape=(6, 20, 20)):
    """An organ (D, H, W) of two parts."""
    volume = np.zeros(shape, dtype=np.uint8)
    volume[2:4, 5:9, 3:12] = 1
    volume[4, 15, 1] = 1
    return volume


def test_box_holds_its_last_voxel_and_is_minus_one_without_a_mask():
    assert tight_box(mask()).tolist() == [2, 5, 1, 4, 15, 11]
    assert tight_box(np.zeros((2, 3, 4))).tolist() == [-1] * 6


@pytest.mark.parametrize(("positive", "negative"), [(1, 0), (1, 10), (11, 10), (3, 0)])
def test_points_lie_where_their_label_says_and_the_rest_is_to_ignore(positive, negative):
    points, labels = draw_points(mask(), np.random.RandomState(0), positive=positive, negative=negative)
    assert points.shape == (MAX_POINTS, 3)
    assert (labels == 1).sum() == positive
    assert (labels == 0).sum() == negative
    given = labels >= 0
    np.testing.assert_array_equal(mask()[tuple(points[given].T)], labels[given])
    assert (points[~given] == -1).all()
    assert len(np.unique(points[given], axis=0)) == positive + negative


def test_points_are_as_many_as_there_are_voxels():
    small = np.zeros((2, 2, 2))
    small[0, 0, 0] = 1
    points, labels = draw_points(small, np.random.RandomState(0), positive=5, negative=0)
    assert labels.tolist() == [1] + [-1] * (MAX_POINTS - 1)
    assert points[0].tolist() == [0, 0, 0]
    assert (draw_points(small * 0, np.random.RandomState(0), positive=1, negative=0)[1] == -1).all()


def test_same_seed_draws_the_same_points():
    one, other = (draw_points(mask(), np.random.RandomState(4), positive=4, negative=6) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])


def test_every_voxel_is_drawn_about_as_often():
    rng = np.random.RandomState(0)
    organ = np.zeros((1, 4, 4))
    organ[0, 1:3] = 1
    drawn = [draw_points(organ, rng, positive=1, negative=0)[0][0] for _ in range(4000)]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 400


def test_more_points_than_rows_are_refused():
    with pytest.raises(InputError, match="2 positive and 3 negative points: length is 4"):
        draw_points(mask(), np.random.RandomState(0), positive=2, negative=3, length=4)


@pytest.mark.parametrize("share", [0.1, 0.5, 2.0])
def test_moved_box_stays_in_the_image_and_is_not_inverted(share):
    rng = np.random.RandomState(0)
    box = tight_box(mask())
    for _ in range(200):
        moved = jittered_box(box, (6, 20, 20), rng, share=share)
        assert (moved[:3] <= moved[3:]).all()
        assert (moved >= 0).all()
        assert (moved[3:] < (6, 20, 20)).all()
        assert (np.abs(moved - box) <= np.ceil(share * np.tile(box[3:] - box[:3] + 1, 2))).all()


def test_empty_box_and_points_to_ignore_stay():
    rng = np.random.RandomState(0)
    assert jittered_box([-1] * 6, (6, 20, 20), rng, share=1).tolist() == [-1] * 6
    points, labels = draw_points(mask(), rng, positive=2, negative=1, length=5)
    moved = jittered_points(points, labels, (3, 11, 11), (6, 20, 20), rng, share=1)
    assert (moved[3:] == -1).all()
    assert (np.abs(moved - points) <= (2, 6, 6)).all()
    assert not np.array_equal(moved, points)
