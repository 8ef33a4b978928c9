import numpy as np
import pytest
from PIL import Image

from tools.ultrasound_phantom import FIELD_MM, Outline, draw_label, random_outline, render, specimen_names, write_cohort

SIZE = (205, 240)


@pytest.mark.parametrize("seed", range(5))
def test_surface_is_bright_and_casts_a_shadow(seed):
    outline = random_outline(SIZE[1], np.random.default_rng(seed))
    image, rows = render(outline, SIZE[0], np.random.default_rng(seed)), outline.depth_mm / FIELD_MM[0] * SIZE[0]
    middle = [x for x in np.flatnonzero(rows < SIZE[0] - 60) if abs(np.gradient(outline.depth_mm)[x]) < 0.1]
    surface, above, below = (
        np.mean([image[int(rows[x]) + first : int(rows[x]) + last, x].mean() for x in middle])
        for first, last in ((-1, 2), (-25, -8), (30, 60))
    )
    assert surface > above + 40
    assert below < above / 2


def test_label_lies_on_the_outline_without_gaps():
    outline = random_outline(SIZE[1], np.random.default_rng(0))
    label = draw_label(outline, SIZE[0])
    rows, columns = np.nonzero(label)
    depth_mm = (rows + 0.5) * FIELD_MM[0] / SIZE[0]
    slope_mm = np.nanmax(np.abs(np.diff(outline.depth_mm)))
    assert np.abs(depth_mm - outline.depth_mm[columns]).max() <= slope_mm + FIELD_MM[0] / SIZE[0]
    assert set(np.unique(label)) == {0, 255}
    grown = np.maximum(label, np.roll(label, 1, 1))
    assert all(grown[:, x].any() for x in np.flatnonzero(~np.isnan(outline.depth_mm)))


def test_without_bone_there_is_no_label_and_no_shadow():
    outline = random_outline(SIZE[1], np.random.default_rng(0), empty=True)
    assert np.isnan(outline.depth_mm).all()
    assert not draw_label(outline, SIZE[0]).any()
    flat = Outline(np.full(SIZE[1], 10.0))
    deep = [render(one, SIZE[0], np.random.default_rng(0))[120:].mean() for one in (outline, flat)]
    assert deep[0] > 1.5 * deep[1]


def test_cohort_has_the_published_folders_and_is_the_same_for_the_same_seed(tmp_path):
    records = write_cohort(tmp_path / "a", specimens=4, frames=2, size=(40, 50), seed=1)
    write_cohort(tmp_path / "b", specimens=2, frames=2, size=(40, 50), seed=1)
    write_cohort(tmp_path / "flat", specimens=1, frames=1, size=(40, 50), flat=True)
    assert [record.relative_to(tmp_path / "a").as_posix() for record in records] == [
        f"{name}/Linear18/record01" for name in specimen_names(4)
    ]
    files = sorted(path.relative_to(records[0]).as_posix() for path in records[0].rglob("*.png"))
    assert files[0] == "Label_partial_gradient/100000_label_partial_gradient.png"
    assert files[-1] == "UltrasoundImages/100050.png"
    with (
        Image.open(records[0] / files[-1]) as image,
        Image.open(tmp_path / "b" / specimen_names(1)[0] / "Linear18/record01" / files[-1]) as again,
    ):
        assert image.size == (50, 40)
        assert np.array_equal(image, again)
    assert (tmp_path / "flat" / specimen_names(1)[0] / "record01/Labels/100000_label.png").is_file()
