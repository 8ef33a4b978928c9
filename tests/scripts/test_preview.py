import functools
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import MapLabelValued
from PIL import Image

from scripts.preview import PreviewSaver, preview_png
from scripts.rendering import best_slices, class_colors, cut, make_scene, render, slice_run, smooth_labels
from scripts.slice_gif import slice_gif

NAMES = {"0": "background", "1": "spleen", "2": "liver"}
SPACING_MM = (2.0, 1.0, 4.0)
SHAPE = (20, 40, 12)


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("scripts.preview.DPI", 40)


def ct(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-150, 200, shape).astype(np.int16)


def organs(shape=SHAPE):
    """A spleen on the patient's left, a liver on the right, both in front (RAS)."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:6, 28:34, 3:6] = 1
    labels[12:18, 24:36, 5:9] = 2
    return labels


def ras_affine(spacing_mm=SPACING_MM):
    return np.diag([*spacing_mm, 1.0])


def oblique_affine(degrees=20.0):
    angle, affine = np.deg2rad(degrees), ras_affine()
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def coloured(picture):
    """Pixels that are not gray."""
    return picture.max(axis=-1) - picture.min(axis=-1) > 40


def scene_of(labels, *, affine=None, image=None, window=(-175, 250)):
    image = ct(shape=labels.shape) if image is None else image
    affine = ras_affine() if affine is None else affine
    return make_scene(image, {"prediction": labels}, affine=affine, class_names=NAMES, window=window)


def reoriented(array, affine, axcodes):
    """Store the same anatomy with other axes."""
    image = nib.Nifti1Image(array, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes))
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


def test_axial_shows_the_patients_right_on_the_left_and_the_front_on_top():
    picture = render(scene_of(organs()), "prediction", "axial", 5, size_px=(80, 80))
    liver = np.argwhere(coloured(picture) & (picture[..., 0] > picture[..., 2]))
    spleen = np.argwhere(coloured(picture) & (picture[..., 0] < picture[..., 2]))
    assert liver[:, 1].max() < 40 < spleen[:, 1].min()
    assert max(liver[:, 0].max(), spleen[:, 0].max()) < 40


def test_coronal_and_sagittal_have_the_head_up_and_sagittal_looks_left():
    volume = np.zeros((3, 4, 5))
    volume[:, :, 4] = 1  # head
    volume[:, 3, :] += 2  # front
    assert cut(volume, "coronal", 0)[0].tolist() == [1, 1, 1]
    assert cut(volume, "sagittal", 0)[0].tolist() == [3, 1, 1, 1]
    assert cut(volume, "sagittal", 0)[1].tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize("axcodes", ["LPS", "SAR", "PIR"])
def test_picture_does_not_depend_on_the_storage_order(tmp_path, axcodes):
    image, affine = reoriented(ct(), ras_affine(), axcodes)
    labels, _ = reoriented(organs(), ras_affine(), axcodes)
    preview_png(ct(), organs(), tmp_path / "ras.png", affine=ras_affine(), class_names=NAMES)
    preview_png(image, labels, tmp_path / "other.png", affine=affine, class_names=NAMES)
    assert np.array_equal(pixels(tmp_path / "ras.png"), pixels(tmp_path / "other.png"))


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


def test_slices_of_one_organ_are_its_largest_sections():
    ball = (np.linalg.norm(np.indices((20, 20, 20)).T - [6, 9, 13], axis=-1) < 5).astype(np.uint8).T
    assert best_slices(ball) == {"sagittal": 6, "coronal": 9, "axial": 13}


def test_empty_prediction_shows_the_middle(tmp_path):
    empty = np.zeros(SHAPE, dtype=np.uint8)
    assert best_slices(empty) == {"sagittal": 10, "coronal": 20, "axial": 6}
    preview_png(ct(), empty, tmp_path / "p.png", affine=ras_affine(), class_names=NAMES)
    slice_gif(ct(), empty, tmp_path / "p.gif", affine=ras_affine(), class_names=NAMES, max_panel_px=40)
    assert not coloured(pixels(tmp_path / "p.png")).any()
    assert Image.open(tmp_path / "p.gif").n_frames == SHAPE[2]


def test_empty_prediction_with_label_shows_the_labels_slices(tmp_path):
    empty = np.zeros(SHAPE, dtype=np.uint8)
    path = tmp_path / "p.png"
    preview_png(ct(), empty, path, affine=ras_affine(), label=organs(), class_names=NAMES)
    picture = coloured(pixels(path)[: int(pixels(path).shape[0] * 0.9)])  # without the legend
    assert not picture[: len(picture) // 2].any()
    assert picture[len(picture) // 2 :].any()


def test_pixels_differ_exactly_where_the_overlay_is():
    scene = scene_of(organs())
    plain = render(scene, None, "axial", 5, size_px=(80, 80)).astype(int)
    overlaid = render(scene, "prediction", "axial", 5, size_px=(80, 80)).astype(int)
    inside = np.kron(cut(organs(), "axial", 5) > 0, np.ones((2, 4), dtype=bool))
    differs = np.abs(plain - overlaid).max(axis=-1) > 0
    assert differs[inside].mean() > 0.95
    assert differs[~inside].mean() < 0.05
    assert not coloured(plain).any()


def test_a_single_voxel_stays_visible():
    labels = np.zeros((9, 9), dtype=np.uint8)
    labels[4, 4] = 1
    assert (smooth_labels(labels, (90, 90)) == 1).sum() > 16


def test_classes_do_not_blend_into_others():
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


def test_png_with_label_has_a_second_row(tmp_path):
    options = {"affine": ras_affine(), "class_names": NAMES, "title": "case 1"}
    preview_png(ct(), organs(), tmp_path / "one.png", **options)
    preview_png(ct(), organs(), tmp_path / "two.png", label=organs(), **options)
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert one.shape[1] == two.shape[1]
    assert 1.6 < two.shape[0] / one.shape[0] < 2.0


def test_colours_are_distinct_and_do_not_depend_on_the_number():
    colors = class_colors(72)
    assert colors.shape == (72, 3)
    assert np.array_equal(class_colors(13), colors[:13])
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + np.eye(72)
    assert distance.min() > 0.1
    assert distance[:13, :13].min() > 0.2


def test_gif_has_a_frame_per_labelled_slice_and_three_panels(tmp_path):
    path = tmp_path / "a.gif"
    slice_gif(ct(), organs(), path, affine=ras_affine(), label=organs(), class_names=NAMES, max_panel_px=60)
    with Image.open(path) as gif:
        assert gif.n_frames == 12  # slices 3..8 and three on either side
        assert gif.size == (3 * 60 + 2 * 4, 60 + 24)
        assert gif.info["loop"] == 0
        gif.seek(5)
        frame = np.asarray(gif.convert("RGB")).astype(int)
    image, pred, label = frame[26:, :60], frame[26:, 64:124], frame[26:, 128:]
    assert not coloured(image).any()
    assert coloured(pred).any()
    assert np.array_equal(pred[:-2], label[:-2])


def test_gif_of_many_slices_is_thinned_out(tmp_path):
    labels = np.zeros((8, 8, 200), dtype=np.uint8)
    labels[2:5, 2:5, 20:180] = 1
    scene = scene_of(labels)
    run = slice_run(scene, 60)
    assert (len(run), run[0], run[-1]) == (60, 17, 182)
    same = np.zeros(labels.shape, dtype=np.int16)  # equal frames, which Pillow would merge
    slice_gif(same, labels, tmp_path / "a.gif", affine=np.eye(4), class_names=NAMES, max_panel_px=48)
    assert Image.open(tmp_path / "a.gif").n_frames == 60


@pytest.mark.parametrize("draw", [preview_png, slice_gif])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            organs()[1:],
            "prediction has shape (19, 40, 12) and the image (20, 40, 12): give both as (X, Y, Z)",
        ),
        (organs() * 3, "class ids [3, 6] are not in class_names: name or remap them."),
    ],
)
def test_bad_input_is_refused_and_leaves_no_file(tmp_path, draw, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(ct(), labels, tmp_path / "x", affine=ras_affine(), class_names=NAMES)
    assert not list(tmp_path.iterdir())


def run_saver(saver, folder, *, affine, image_affine=None, label=None, batch_label=None, case="p1"):
    """Give the handler a case whose engine image is a preprocessed one."""
    nib.save(nib.Nifti1Image(ct(), affine if image_affine is None else image_affine), folder / "ct.nii.gz")
    meta = {"filename_or_obj": str(folder / "ct.nii.gz")}
    batch = {"case": case, "image": MetaTensor(torch.zeros(1, 4, 4, 4), meta=meta), "label": batch_label}
    output = {
        "pred": MetaTensor(torch.from_numpy(organs())[None], affine=torch.as_tensor(affine)),
        "label": label,
    }

    def step(engine, _):
        engine.state.batch, engine.state.output = ([batch], [output]) if case else ([], [])
        engine.fire_event(IterationEvents.MODEL_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    saver.attach(engine)
    engine.run([0], max_epochs=1)


def test_handler_reads_the_original_image_again(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.preview.slice_gif", functools.partial(slice_gif, max_panel_px=40))
    label = MetaTensor(torch.from_numpy(organs())[None].float(), affine=torch.as_tensor(oblique_affine()))
    saver = PreviewSaver(tmp_path / "out", NAMES, gif=True)
    run_saver(saver, tmp_path, affine=oblique_affine(), label=label)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p1.gif", "p1_preview.png"]
    expected = tmp_path / "expected.png"
    options = {"affine": oblique_affine(), "class_names": NAMES, "title": "p1"}
    preview_png(ct(), organs(), expected, label=organs(), **options)
    assert np.array_equal(pixels(expected), pixels(tmp_path / "out" / "p1_preview.png"))


def test_label_that_a_datalist_names_is_read_and_drawn(tmp_path):
    nib.save(nib.Nifti1Image(organs(), oblique_affine()), tmp_path / "label.nii.gz")
    saver = PreviewSaver(tmp_path / "out", NAMES)
    run_saver(saver, tmp_path, affine=oblique_affine(), batch_label=str(tmp_path / "label.nii.gz"))
    options = {"affine": oblique_affine(), "class_names": NAMES, "title": "p1"}
    preview_png(ct(), organs(), tmp_path / "expected.png", label=organs(), **options)
    assert np.array_equal(pixels(tmp_path / "expected.png"), pixels(tmp_path / "out" / "p1_preview.png"))


def test_label_of_another_numbering_is_transformed_before_it_is_drawn(tmp_path):
    other = np.where(organs() == 2, 7, organs())
    nib.save(nib.Nifti1Image(other.astype(np.uint8), ras_affine()), tmp_path / "label.nii.gz")
    saver = PreviewSaver(tmp_path / "out", NAMES, label_transform=MapLabelValued("label", [7], [2]))
    run_saver(saver, tmp_path, affine=ras_affine(), batch_label=str(tmp_path / "label.nii.gz"))
    options = {"affine": ras_affine(), "class_names": NAMES, "title": "p1"}
    preview_png(ct(), organs(), tmp_path / "expected.png", label=organs(), **options)
    assert np.array_equal(pixels(tmp_path / "expected.png"), pixels(tmp_path / "out" / "p1_preview.png"))


def test_label_in_preprocessed_space_is_left_out(tmp_path):
    label = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4))
    run_saver(PreviewSaver(tmp_path / "out", NAMES), tmp_path, affine=ras_affine(), label=label)
    preview_png(ct(), organs(), tmp_path / "e.png", affine=ras_affine(), class_names=NAMES, title="p1")
    assert np.array_equal(pixels(tmp_path / "e.png"), pixels(tmp_path / "out" / "p1_preview.png"))


def test_failed_case_has_no_picture(tmp_path):
    run_saver(PreviewSaver(tmp_path / "out", NAMES), tmp_path, affine=ras_affine(), case=None)
    assert not (tmp_path / "out").exists()


def test_prediction_off_the_images_grid_is_refused(tmp_path):
    other = ras_affine() + np.eye(4, k=3) * 5
    with pytest.raises(ValueError, match="p1: prediction and image lie differently in the patient"):
        run_saver(PreviewSaver(tmp_path / "out", NAMES), tmp_path, affine=ras_affine(), image_affine=other)


def test_image_without_a_file_is_refused():
    item = {"case": "p1", "image": torch.zeros(1, 2, 2, 2)}
    with pytest.raises(ValueError, match='p1: "image" does not know its file'):
        PreviewSaver("out", NAMES)._native_image(item, "p1")
