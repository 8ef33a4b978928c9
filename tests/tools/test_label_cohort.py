import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.common.organs import ORGANS
from scripts.solf.evaluation import label_dice
from scripts.solf.features import label_shape_features
from tools.label_anatomy import IDS, TISSUES
from tools.label_body import SPACING_MM, draw_label_map
from tools.label_cohort import main, make_cohort, make_subject
from tools.label_errors import CONTRALATERAL, KINDS, WRONG_BELOW_DICE, corrupt_label, inject_errors

PERSONS = 16
ADULT_ML = {
    "spleen": (100, 300),
    "kidney_right": (80, 200),
    "kidney_left": (80, 200),
    "gallbladder": (15, 60),
    "liver": (1000, 2500),
    "stomach": (100, 500),
    "pancreas": (60, 150),
    "adrenal_gland_right": (3, 10),
    "adrenal_gland_left": (3, 10),
    "urinary_bladder": (100, 600),
    "heart": (200, 400),
    "spinal_cord": (20, 50),
    "prostate": (15, 50),
    "thyroid_gland": (10, 30),
    "aorta": (80, 250),
    "femur_left": (150, 400),  # to the middle of the thigh
    "lung_upper_lobe_left": (600, 1800),
    "gluteus_maximus_right": (400, 1100),
    "muscle": (10_000, 25_000),
    "subcutaneous_fat": (5_000, 20_000),
}
HIT = ["spleen", "kidney_left", "adrenal_gland_right", "aorta", "liver", "femur_right"]


@pytest.fixture(scope="module")
def persons():
    return [make_subject(5, index, error_rate=0.2) for index in range(PERSONS)]


@pytest.fixture(scope="module")
def shapes(persons):
    return pd.concat([label_shape_features(p.clean, p.affine).assign(case=n) for n, p in enumerate(persons)])


def volumes_ml(shapes):
    return (
        shapes.assign(organ=shapes["label"].map(ORGANS)).pivot(index="case", columns="organ", values="volume_mm3") / 1e3
    )


def with_error(persons, kind, organ, seed):
    clean = persons[0].clean
    corrupted, rng = clean.copy(), np.random.default_rng(seed)
    affected = corrupt_label(
        corrupted, IDS[organ], kind, rng=rng, spacing_mm=SPACING_MM, others=[1, 2, 3, 5, 7, 24, 25]
    )
    return clean, corrupted, clean == IDS[organ], corrupted == IDS[organ], affected


def each_organ(kind):
    return pytest.mark.parametrize(("kind", "organ", "seed"), [(kind, o, s) for o in HIT for s in (0, 1)])


def test_maps_hold_organs_alone_and_fill_the_body(persons):
    for person in persons:
        assert person.clean.dtype == np.uint8
        assert set(np.unique(person.clean)) <= {0, *ORGANS}
        assert len(np.unique(person.clean)) > 45
        body = person.clean > 0
        assert np.array_equal(ndimage.binary_fill_holes(body), body)


def test_median_volumes_are_those_of_adults(shapes):
    medians = volumes_ml(shapes).median()
    outside = {organ: medians[organ] for organ, (low, high) in ADULT_ML.items() if not low < medians[organ] < high}
    assert not outside


def test_volumes_vary_as_people_do(shapes):
    volumes = volumes_ml(shapes)
    variation = volumes.std() / volumes.mean()
    assert variation.between(0.06, 0.7).all()
    assert 0.15 < variation.median() < 0.35
    lungs = np.log(volumes[["lung_upper_lobe_left", "lung_lower_lobe_left", "muscle"]])
    assert lungs.corr().loc["lung_upper_lobe_left", "muscle"] > 0.2  # large people have more of everything


def test_some_lack_a_gallbladder_and_only_some_have_a_prostate(shapes):
    volumes = volumes_ml(shapes)
    assert 0 < volumes["gallbladder"].isna().sum() < PERSONS / 2
    assert 0.2 * PERSONS < volumes["prostate"].isna().sum() < 0.8 * PERSONS
    assert volumes["liver"].notna().all()


def test_contralateral_organs_but_lungs_have_the_same_size_and_mirror_each_other(shapes):
    by_label = shapes.set_index(["label", "case"])
    middle_mm = by_label.loc[IDS["sacrum"], "centroid_x_mm"]
    for right, left in CONTRALATERAL.items():
        if "right" in ORGANS[right] and "lung" not in ORGANS[right] and right in by_label.index:
            one, other = by_label.loc[right], by_label.loc[left]
            assert abs(np.log(one["volume_mm3"] / other["volume_mm3"]).median()) < 0.15
            x_mm = (one["centroid_x_mm"] - middle_mm).median(), (other["centroid_x_mm"] - middle_mm).median()
            assert x_mm[0] > 10
            assert x_mm[0] + x_mm[1] == pytest.approx(0, abs=8)


def test_liver_lies_right_and_below_the_heart(shapes):
    place = shapes.groupby("label")[["centroid_x_mm", "centroid_z_mm"]].median()
    assert place.loc[IDS["liver"], "centroid_x_mm"] > 30 > -30 > place.loc[IDS["spleen"], "centroid_x_mm"]
    heights = [place.loc[IDS[n], "centroid_z_mm"] for n in ("thyroid_gland", "heart", "liver", "urinary_bladder")]
    assert heights == sorted(heights, reverse=True)


def test_body_depends_on_seed_and_number_alone(persons):
    assert np.array_equal(make_subject(5, 3, error_rate=0.0).clean, persons[3].clean)
    assert np.array_equal(make_subject(5, 3, error_rate=0.2).corrupted, persons[3].corrupted)
    assert not np.array_equal(make_subject(6, 3, error_rate=0.0).clean, persons[3].clean)


@each_organ("missing half")
def test_missing_half_is_cut_off_along_the_longest_axis(persons, kind, organ, seed):
    clean, corrupted, truth, mask, _ = with_error(persons, kind, organ, seed)
    assert 0.39 < mask.sum() / truth.sum() < 0.61
    assert set(corrupted[corrupted != clean]) == {0}
    points = np.argwhere(truth) * SPACING_MM
    axis = np.linalg.eigh(np.cov(points.T))[1][:, 2]
    along = np.argwhere(mask) * SPACING_MM @ axis
    assert np.ptp(along) < 0.85 * np.ptp(points @ axis)


@each_organ("leak")
def test_leak_takes_voxels_of_one_neighbour_that_touch_the_label(persons, kind, organ, seed):
    clean, corrupted, truth, mask, _ = with_error(persons, kind, organ, seed)
    gained = mask & ~truth
    assert (mask >= truth).all()
    assert len(np.unique(clean[gained])) == 1
    assert clean[gained].min() > 0
    assert gained.sum() <= round(truth.sum())
    assert (gained & ndimage.binary_dilation(truth)).any()
    assert np.array_equal(corrupted != clean, gained)


@each_organ("fragments")
def test_fragments_are_patches_and_islands(persons, kind, organ, seed):
    _, _, truth, mask, _ = with_error(persons, kind, organ, seed)
    assert 0.38 < (mask & truth).sum() / truth.sum() < 0.67
    assert 0 < (mask & ~truth).sum() <= 0.35 * truth.sum() + 4
    everywhere = np.ones((3, 3, 3))
    assert ndimage.label(mask, everywhere)[1] > ndimage.label(truth, everywhere)[1]


@pytest.mark.parametrize("organ", ["kidney_left", "adrenal_gland_right", "femur_right"])
def test_swapped_exchanges_left_and_right(persons, organ):
    clean, corrupted, truth, mask, affected = with_error(persons, "swapped", organ, 0)
    contralateral = CONTRALATERAL[IDS[organ]]
    assert affected == (IDS[organ], contralateral)
    assert np.array_equal(mask, clean == contralateral)
    assert np.array_equal(corrupted == contralateral, truth)
    assert set(clean[corrupted != clean]) == set(affected)


@each_organ("wrong organ")
def test_wrong_organ_exchanges_two_that_are_not_contralateral(persons, kind, organ, seed):
    clean, corrupted, truth, mask, (one, other) = with_error(persons, kind, organ, seed)
    assert one == IDS[organ]
    assert other not in (one, CONTRALATERAL.get(one))
    assert np.array_equal(mask, clean == other)
    assert np.array_equal(corrupted == other, truth)


@each_organ("shifted")
def test_shifted_label_keeps_its_shape(persons, kind, organ, seed):
    _, corrupted, truth, mask, _ = with_error(persons, kind, organ, seed)
    assert (mask & truth).sum() <= 0.8 * truth.sum()
    was, now = np.argwhere(truth), np.argwhere(mask)
    if len(was) == len(now):  # else it was cut off at the border
        assert len(np.unique(now - was, axis=0)) == 1
    assert (corrupted[truth & ~mask] == 0).all()


def test_shift_at_the_border_loses_what_leaves_the_map():
    label = np.zeros((12, 12, 12), np.uint8)
    label[:3] = 5
    counts = []
    for seed in range(10):
        moved = label.copy()
        corrupt_label(moved, 5, "shifted", rng=np.random.default_rng(seed), spacing_mm=(5, 5, 5), others=[])
        counts.append((moved == 5).sum())
    assert min(counts) < 3 * 12 * 12


@each_organ("eroded")
def test_eroded_label_loses_its_surface(persons, kind, organ, seed):
    clean, corrupted, truth, mask, _ = with_error(persons, kind, organ, seed)
    assert 0.39 < mask.sum() / truth.sum() < 0.76
    assert set(corrupted[corrupted != clean]) == {0}
    depth_mm = ndimage.distance_transform_edt(truth, sampling=SPACING_MM)
    assert depth_mm[truth & ~mask].max() <= depth_mm[mask].min() + 2 * max(SPACING_MM)
    assert depth_mm[mask].mean() > depth_mm[truth & ~mask].mean()


@each_organ("dilated")
def test_dilated_label_grows_within_the_body(persons, kind, organ, seed):
    clean, corrupted, truth, mask, _ = with_error(persons, kind, organ, seed)
    gained = mask & ~truth
    assert (mask >= truth).all()
    assert 0.34 < gained.sum() / truth.sum() < 1.01
    assert clean[gained].min() > 0
    distance_mm = ndimage.distance_transform_edt(~truth, sampling=SPACING_MM)
    rest = (clean > 0) & ~mask
    assert distance_mm[gained].max() <= distance_mm[rest].min() + 2 * max(SPACING_MM) + distance_mm[gained].mean()
    assert np.array_equal(corrupted != clean, gained)


def test_listed_labels_are_those_below_the_stated_dice(persons):
    seen = set()
    for person in persons:
        dice, present = label_dice(person.corrupted, person.clean), set(np.unique(person.corrupted))
        listed = [label for label, _ in person.errors]
        assert listed == [label for label, score in dice.items() if score < WRONG_BELOW_DICE and label in present]
        seen |= {kind for _, kind in person.errors}
    assert seen == {*KINDS, "overwritten"}


def test_neighbours_that_lose_much_are_overwritten_and_those_that_lose_little_are_correct():
    clean = np.full((40, 40, 40), TISSUES[1], np.uint8)
    clean[10:30, 10:30, 10:30] = IDS["liver"]
    clean[30:32, 15:20, 15:20] = IDS["gallbladder"]
    for seed in range(200):
        _, errors = inject_errors(clean, rate=0.5, rng=np.random.default_rng(seed), spacing_mm=(5, 5, 5))
        kinds = dict(errors)
        assert TISSUES[1] not in kinds  # much is left of it
        if kinds == {IDS["liver"]: "dilated", IDS["gallbladder"]: "overwritten"}:
            return
    pytest.fail("no seed dilated the liver alone")


def test_organs_get_errors_at_the_given_rate_and_tissues_never():
    clean = draw_label_map(np.random.default_rng(0))[0]
    organs, with_own_error = len(np.unique(clean)) - 1 - len(TISSUES), []
    for seed in range(12):
        _, errors = inject_errors(clean, rate=0.05, rng=np.random.default_rng(seed), spacing_mm=SPACING_MM)
        with_own_error.append(sum(kind != "overwritten" for _, kind in errors))
        assert not {label for label, _ in errors} & set(TISSUES)
    assert 0.03 < np.mean(with_own_error) / organs < 0.1


def test_without_errors_the_map_stays(persons):
    corrupted, errors = inject_errors(persons[0].clean, rate=0, rng=np.random.default_rng(0), spacing_mm=SPACING_MM)
    assert np.array_equal(corrupted, persons[0].clean)
    assert errors == []


def test_cohort_is_the_same_twice_and_a_larger_one_begins_with_it(tmp_path):
    few = make_cohort(tmp_path / "few", subjects=2, error_rate=0.1, seed=4, truth=True)
    main([str(tmp_path / "more"), "--subjects", "3", "--errors", "0.1", "--seed", "4"])
    for path in few.labels:
        assert path.read_bytes() == (tmp_path / "more" / "labels" / path.name).read_bytes()
    assert not (tmp_path / "more" / "truth").exists()
    table = pd.read_csv(tmp_path / "more" / "errors.csv")
    assert list(table.columns) == ["case", "label", "organ", "kind"]
    pd.testing.assert_frame_equal(table[table["case"].isin(few.errors["case"])], few.errors, check_dtype=False)


def test_written_maps_are_integers_with_their_affine_and_errors_name_their_cases(tmp_path):
    cohort = make_cohort(tmp_path, subjects=2, error_rate=0.1, seed=4, truth=True)
    for index, (labels, truth) in enumerate(zip(cohort.labels, cohort.truth, strict=True)):
        person, image = make_subject(4, index, error_rate=0.1), nib.load(labels)
        assert image.get_data_dtype() == np.uint8
        assert np.array_equal(np.asarray(image.dataobj), person.corrupted)
        assert np.array_equal(np.asarray(nib.load(truth).dataobj), person.clean)
        assert image.affine == pytest.approx(person.affine, abs=1e-4)
        rows = cohort.errors[cohort.errors["case"] == labels.name.removesuffix(".nii.gz")]
        assert list(zip(rows["label"], rows["kind"], strict=True)) == person.errors
        assert list(rows["organ"]) == [ORGANS[label] for label in rows["label"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": 0}, "subjects is 0 and seed 0: give at least 1, and 0 or more."),
        ({"subjects": 1, "seed": -1}, "subjects is 1 and seed -1: give at least 1, and 0 or more."),
        ({"subjects": 1, "error_rate": 1.5}, "the error rate is 1.5: give 0 to 1."),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        make_cohort(tmp_path, **options)
