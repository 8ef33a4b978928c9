import numpy as np

from scripts.ultrabones.preview import PREDICTION, REFERENCE, overlay


def test_frame_stays_and_outlines_are_drawn_beside_it():
    image = np.linspace(10, 20, 8 * 9).reshape(8, 9)
    masks = {PREDICTION: np.zeros((8, 9)), REFERENCE: np.zeros((8, 9))}
    masks[PREDICTION][2, 2] = masks[REFERENCE][6, 6] = 1
    canvas = overlay(image, masks)
    assert canvas.shape == (8, 18, 3)
    assert (canvas[0, 0, 0], canvas[7, 8, 0]) == (0, 255)
    assert (canvas[:, :9] == canvas[:, :9, :1]).all()
    assert tuple(canvas[1, 9 + 2]) == PREDICTION
    assert tuple(canvas[5, 9 + 6]) == REFERENCE
    assert np.array_equal(canvas[2, 9 + 2], canvas[2, 2])


def test_frame_of_one_value_is_black():
    assert not overlay(np.full((3, 3), 7), {}).any()
