import numpy as np
import pytest

from scripts.preview.colors import ORGAN_COLORS
from scripts.preview.rendering import (
    best_slices,
    extract_slice,
    inside_color,
    make_scene,
    render,
    slice_positions,
    smooth_labels,
)
from tests.scripts.preview.small_ct import (
    NAMES,
    SHAPE,
    SPACING_MM,
    coloured,
    ct,
    oblique_affine,
    organs,
    ras_affine,
    scene_of,
)


def test_axial_shows_the_patients_right_on_the_left_and_the_front_on_top():
    picture = render(scene_of(organs()), "prediction", "axial", 5, size_px=(80, 80)).astype(int)
    liver = np.argwhere(coloured(picture) & (picture[..., 0] > picture[..., 1]))  # brown
    spleen = np.argwhere(coloured(picture) & (picture[..., 0] < picture[..., 1]))  # green
    assert liver[:, 1].max() < 40 < spleen[:, 1].min()
    assert max(liver[:, 0].max(), spleen[:, 0].max()) < 40


def test_coronal_and_sagittal_have_the_head_up_and_sagittal_the_front_on_the_left():
    volume = np.zeros((3, 4, 5))
    volume[:, :, 4] = 1  # head
    volume[:, 3, :] += 2  # front
    assert extract_slice(volume, "coronal", 0)[0].tolist() == [1, 1, 1]
    assert extract_slice(volume, "sagittal", 0)[0].tolist() == [3, 1, 1, 1]
    assert extract_slice(volume, "sagittal", 0)[1].tolist() == [2, 0, 0, 0]


def test_oblique_affine_is_drawn_along_the_nearest_planes_with_its_own_spacing():
    straight, oblique = scene_of(organs()), scene_of(organs(), affine=oblique_affine())
    assert np.allclose(oblique.spacing_mm, SPACING_MM)
    assert np.array_equal(straight.image, oblique.image)


def test_spacing_follows_its_axis_when_axes_are_exchanged():
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 5.0, 2.0, 1.0, 1.0  # stored as S, R, A
    scene = scene_of(np.zeros((4, 6, 10), dtype=np.uint8), affine=affine)
    assert scene.spacing_mm.tolist() == [2.0, 1.0, 5.0]
    assert scene.size_mm("axial") == (10.0, 12.0)
    assert scene.size_mm("coronal") == (20.0, 12.0)
    assert scene.size_mm("sagittal") == (20.0, 10.0)


def test_slices_with_most_of_the_organs_are_chosen():
    assert best_slices(organs()) == {"sagittal": 13, "coronal": 31, "axial": 5}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_slices_of_one_organ_are_its_largest_sections(dtype, order):
    ball = np.linalg.norm(np.indices((20, 20, 20)).T - [6, 9, 13], axis=-1).T < 5
    assert best_slices(np.asarray(ball.astype(dtype), order=order)) == {"sagittal": 6, "coronal": 9, "axial": 13}


def test_slices_of_an_empty_map_are_the_middle_ones():
    assert best_slices(np.zeros(SHAPE, dtype=np.uint8)) == {"sagittal": 10, "coronal": 20, "axial": 6}


def test_pixels_differ_only_where_organs_are_drawn():
    scene = scene_of(organs())
    plain = render(scene, None, "axial", 5, size_px=(80, 80)).astype(int)
    drawn = render(scene, "prediction", "axial", 5, size_px=(80, 80)).astype(int)
    inside = np.kron(extract_slice(organs(), "axial", 5) > 0, np.ones((2, 4), dtype=bool))
    differs = np.abs(plain - drawn).max(axis=-1) > 0
    assert differs[inside].mean() > 0.95
    assert differs[~inside].mean() < 0.05
    assert not coloured(plain).any()


def test_organ_is_pale_inside_and_outlined_in_its_colour():
    scene = scene_of(organs(), image=np.zeros(SHAPE), window=(-100, 100))
    picture = render(scene, "prediction", "axial", 6, size_px=(120, 120), outline_px=3).astype(int)
    rows, columns = np.nonzero(coloured(picture))
    middle_row, middle_column = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    inside, outline = picture[middle_row, middle_column], picture[middle_row, columns.min() + 1]
    assert np.abs(inside - inside_color(ORGAN_COLORS["liver"])).max() <= 2
    assert np.abs(outline - ORGAN_COLORS["liver"]).max() <= 2


def test_colours_follow_names_not_class_ids():
    maps = {"prediction": organs()}
    options = {"affine": ras_affine(), "window": None}
    one = make_scene(ct(), maps, class_names={1: "spleen", 2: "liver"}, **options)
    other = make_scene(ct(), maps, class_names={1: "aorta", 2: "spleen", 9: "liver"}, **options)
    assert one.colors[1] == other.colors[2] == ORGAN_COLORS["spleen"]
    assert one.colors[2] == other.colors[9] == ORGAN_COLORS["liver"]
    assert other.present == [1, 2]


def test_a_single_voxel_stays_visible():
    labels = np.zeros((9, 9), dtype=np.uint8)
    labels[4, 4] = 1
    assert (smooth_labels(labels, (90, 90)) == 1).sum() > 16


def test_resized_classes_do_not_become_others():
    labels = np.zeros((8, 8), dtype=np.uint8)
    labels[:, :4], labels[:, 4:] = 1, 3
    assert set(np.unique(smooth_labels(labels, (100, 60)))) == {1, 3}


def test_window_none_takes_percentiles():
    image = np.random.default_rng(3).uniform(0, 1000, SHAPE)
    low, high = scene_of(organs(), image=image, window=None).window
    assert low == pytest.approx(10, abs=8)
    assert high == pytest.approx(990, abs=8)


def test_constant_image_is_drawn():
    scene = scene_of(organs(), image=np.zeros(SHAPE), window=None)
    assert render(scene, None, "axial", 5, size_px=(8, 8)).shape == (8, 8, 3)


def test_scene_without_organs_or_names_is_drawn():
    scene = make_scene(ct(), {"prediction": organs() * 0}, affine=ras_affine(), class_names={}, window=None)
    assert not coloured(render(scene, "prediction", "coronal", 5, size_px=(8, 8)).astype(int)).any()


def test_positions_are_spread_over_the_slices_with_organs_and_three_on_either_side():
    labels = np.zeros((8, 8, 200), dtype=np.uint8)
    labels[2:5, 2:5, 20:180] = 1
    positions = slice_positions(scene_of(labels), 60)
    assert (len(positions), positions[0], positions[-1]) == (60, 17, 182)
    assert set(np.diff(positions)) == {2, 3}
    assert slice_positions(scene_of(organs()), 60) == list(range(12))


def test_names_of_the_metadata_may_be_strings():
    assert scene_of(organs()).names == {1: "spleen", 2: "liver"} == {int(k): v for k, v in NAMES.items() if k != "0"}
