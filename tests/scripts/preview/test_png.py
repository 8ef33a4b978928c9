import re
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.preview.colors import ORGAN_COLORS
from scripts.preview.gif import slice_gif
from scripts.preview.png import preview_png
from tests.scripts.preview.small_ct import NAMES, SHAPE, coloured, ct, organs, pixels, ras_affine

pytestmark = pytest.mark.usefixtures("small_pictures")


def reoriented(array, affine, axcodes):
    """Store the same anatomy with other axes."""
    image = nib.Nifti1Image(array, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes))
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


def drawn(tmp_path, image, labels, **options):
    path = tmp_path / "p.png"
    preview_png(image, labels, path, **{"affine": ras_affine(), "class_names": NAMES} | options)
    return pixels(path)


def test_picture_has_no_alpha_channel(tmp_path):
    preview_png(ct(), organs(), tmp_path / "p.png", affine=ras_affine(), class_names=NAMES)
    assert Image.open(tmp_path / "p.png").mode == "RGB"


@pytest.mark.parametrize("axcodes", ["LPS", "SAR", "PIR"])
def test_picture_does_not_depend_on_the_storage_order(tmp_path, axcodes):
    image, affine = reoriented(ct(), ras_affine(), axcodes)
    labels, _ = reoriented(organs(), ras_affine(), axcodes)
    expected = drawn(tmp_path, ct(), organs())
    assert np.array_equal(drawn(tmp_path, image, labels, affine=affine), expected)


def test_empty_prediction_shows_no_organs(tmp_path):
    empty = np.zeros(SHAPE, dtype=np.uint8)
    assert not coloured(drawn(tmp_path, ct(), empty)).any()


def test_empty_prediction_with_label_shows_the_slices_of_the_label(tmp_path):
    empty = np.zeros(SHAPE, dtype=np.uint8)
    picture = drawn(tmp_path, ct(), empty, label=organs())
    picture = coloured(picture[: int(len(picture) * 0.9)])  # without the legend
    assert not picture[: len(picture) // 2].any()
    assert picture[len(picture) // 2 :].any()


def test_label_is_drawn_as_a_second_row(tmp_path):
    one = drawn(tmp_path, ct(), organs(), title="case 1")
    two = drawn(tmp_path, ct(), organs(), title="case 1", label=organs())
    assert one.shape[1] == two.shape[1]
    assert 1.6 < two.shape[0] / one.shape[0] < 2.0


ODD_TEXTS = [r"p_1 $x^{ \alpha", r"a$\frac{$", "$", r"a\$b$c$", "a\nb\tc", "p9\udce9", "%s {}", "x" * 300, "_p"]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_titles_and_names_of_organs_may_hold_any_character(tmp_path, text):
    """Text between two dollar signs is a formula for matplotlib, which fails if it is invalid."""
    plain = drawn(tmp_path, ct(), organs(), title="", class_names={1: "spleen", 2: "liver"})
    titled = drawn(tmp_path, ct(), organs(), title=text, class_names={1: "spleen", 2: text})
    assert titled.shape[0] > plain.shape[0]


def test_dollar_signs_are_drawn_as_they_are(tmp_path):
    formula = drawn(tmp_path, ct(), organs(), title="$x^2$")
    other = drawn(tmp_path, ct(), organs(), title="$y^2$")
    letters = drawn(tmp_path, ct(), organs(), title="x^2")
    width = [
        np.flatnonzero(picture[: picture.shape[0] // 20].max(axis=(0, 2)) > 100).size for picture in (formula, letters)
    ]
    assert width[0] > width[1]
    assert not np.array_equal(formula, other)


def split_at_legend(picture, gray):
    """Split a picture of a constant image into its panels and its legend."""
    rows = np.flatnonzero((np.abs(picture - gray) <= 2).all(axis=-1).sum(axis=1) > 100)
    return picture[: rows[-1] + 1], picture[rows[-1] + 1 :]


def count_near(picture, color):
    return int((np.abs(picture - color) <= 3).all(axis=-1).sum())


@pytest.mark.parametrize("organ", ["liver", "aorta", "spleen", "pancreas", "a new organ"])
def test_legend_shows_the_inside_and_the_outline_of_an_organ_as_they_are_drawn(tmp_path, monkeypatch, organ):
    monkeypatch.setattr("scripts.preview.png.DPI", 130)
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    labels[10:30, 10:30, 10:30] = 1
    options = {"affine": np.eye(4), "class_names": {1: organ}, "window": (-100, 100)}
    panels, legend = split_at_legend(drawn(tmp_path, np.zeros(labels.shape), labels, **options), gray=127)
    inside, outline = (color for color, _ in Counter(map(tuple, panels[coloured(panels)])).most_common(2))
    if organ in ORGAN_COLORS:
        assert np.abs(np.subtract(outline, ORGAN_COLORS[organ])).max() <= 2
    assert count_near(legend, inside) > 100, "the inside of the swatch"
    assert count_near(legend, outline) > 20, "the outline of the swatch"


def test_legend_names_only_the_organs_in_these_slices(tmp_path):
    labels = np.zeros((40, 40, 40), dtype=np.uint8)
    labels[10:30, 10:30, 10:30] = 2
    alone = drawn(tmp_path, np.zeros(labels.shape), labels)
    labels[0, 0, 0] = 1  # in none of the three slices
    assert np.array_equal(drawn(tmp_path, np.zeros(labels.shape), labels), alone)


@pytest.mark.parametrize("n", [1, 13, 72])
def test_legend_of_many_organs_fits_into_the_picture(tmp_path, n):
    labels = np.zeros((18, 18, 3), dtype=np.uint8)
    labels[:, :, :] = (np.arange(18 * 18).reshape(18, 18) % n + 1)[..., None]
    picture = drawn(tmp_path, np.zeros(labels.shape), labels, class_names=dict(list(ORGANS.items())[:n]))
    rows = np.flatnonzero(picture.max(axis=(1, 2)) > 0)
    columns = np.flatnonzero(picture.max(axis=(0, 2)) > 0)
    assert rows[-1] < len(picture) - 2
    assert 2 < columns[0] < columns[-1] < picture.shape[1] - 2


@pytest.mark.parametrize("draw", [preview_png, slice_gif])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (organs()[1:], "prediction has shape (19, 40, 12) and the image (20, 40, 12): give both as (X, Y, Z) on the"),
        (organs() * 3, "class ids [3, 6] are not in class_names: name or remap them."),
        (organs() / 2, "prediction holds 0.5, not a class id: resample label maps with nearest neighbour."),
    ],
    ids=["another shape", "unknown classes", "fractions"],
)
def test_bad_input_is_refused_and_leaves_no_file(tmp_path, draw, labels, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        draw(ct(), labels, tmp_path / "x", affine=ras_affine(), class_names=NAMES)
    assert not list(tmp_path.iterdir())
