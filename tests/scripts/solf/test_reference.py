import numpy as np
import pytest

from scripts.solf.reference import RELATIVE, fit_reference, measures, median, relate

ORGANS = 30


def people(count, *, seed=0, sizes=0.1, turn=0.05):
    """Draw people of thirty organs: log volumes and positions, which a size and an affine pose change."""
    rng = np.random.default_rng(seed)
    body = np.column_stack([np.linspace(8, 13, ORGANS), np.random.default_rng(99).uniform(-200, 200, (ORGANS, 3))])
    drawn = np.tile(body, (count, 1, 1))
    drawn[:, :, 0] += rng.normal(0, sizes, (count, 1)) + rng.normal(0, 0.15, (count, ORGANS))
    poses = np.eye(3) + rng.normal(0, turn, (count, 3, 3))
    drawn[:, :, 1:] = (
        drawn[:, :, 1:] @ poses + rng.normal(0, 100, (count, 1, 3)) + rng.normal(0, 3, drawn[..., 1:].shape)
    )
    return drawn


@pytest.fixture(scope="module")
def reference():
    return fit_reference(people(300))


def test_relative_features_are_in_units_of_their_own_spread(reference):
    features = relate(people(300, seed=1), reference).features
    deviations = 1.4826 * median(np.abs(features), axis=0)
    assert deviations.shape == (ORGANS, len(RELATIVE))
    np.testing.assert_allclose(deviations[:, 0], 0.8, atol=0.25)  # less the person's size
    np.testing.assert_allclose(deviations[:, 1:], 1, atol=0.3)


@pytest.mark.parametrize("change", ["missing", "far away", "merged", "truncated"])
def test_what_is_wrong_with_one_organ_leaves_the_features_of_the_others(reference, change):
    """The sum of all labels, by contrast, moves with the organ."""
    before = people(50, seed=2)
    after = before.copy()
    match change:
        case "missing":
            after[:, 4] = np.nan
        case "far away":
            after[:, 4, 1:] += 300
        case "merged":
            after[:, 4] += np.array([2.0, 60, -40, 20])
            after[:, 5] = np.nan
        case "truncated":
            after[:, 4:6] -= np.array([1.5, 0, 0, 40])
    others = [n for n in range(ORGANS) if n not in (4, 5)]
    moved = np.abs(relate(after, reference).features - relate(before, reference).features)[:, others]
    assert np.quantile(moved, 0.9) < 0.6
    assert moved.max() < 2.5


def test_displaced_organ_shows_its_distance_in_spreads(reference):
    person = people(20, seed=3)
    expected = relate(person, reference).features[:, 7, 2].copy()
    person[:, 7, 2] += 50
    found = relate(person, reference).features[:, 7, 2] - expected
    np.testing.assert_allclose(found, 50 / reference.spreads[7, 2], rtol=0.15)


def test_size_and_pose_of_the_person_do_not_count(reference):
    person = people(10, seed=4)
    changed = person + np.array([0.7, 500, -300, 1000])
    changed[:, :, 0] = person[:, :, 0] + 0.7 * reference.spreads[:, 0] / np.median(reference.spreads[:, 0])
    before, after = relate(person, reference).features, relate(changed, reference).features
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_missing_organs_place_is_predicted(reference):
    person = people(40, seed=5)
    without = person.copy()
    without[:, 3] = np.nan
    distance_mm = np.abs(relate(without, reference).places_mm[:, 3] - person[:, 3, 1:])
    assert np.median(distance_mm) < 6


def test_person_of_two_organs_has_no_relative_position_and_the_size_of_the_cohort(reference):
    person = np.full((1, ORGANS, 4), np.nan)
    person[0, :2] = reference.medians[:2] + np.array([0.5, 10, 10, 10])
    related = relate(person, reference)
    np.testing.assert_allclose(related.features[0, :2, 0], 0.5 / reference.spreads[:2, 0])
    assert np.isnan(related.features[0, :, 1:]).all()
    assert np.isnan(related.places_mm).all()
    person[0, 2] = reference.medians[2] + np.array([0.5, 10, 10, 10])
    assert np.isfinite(relate(person, reference).features[0, :3]).all()


def test_organ_of_few_cases_is_left_out():
    cohort = people(100)
    cohort[19:, 6] = np.nan
    found = fit_reference(cohort)
    assert np.isnan(found.medians[6]).all()
    assert np.isnan(found.spreads[6]).all()
    features = relate(cohort, found).features
    assert np.isnan(features[:, 6]).all()
    assert np.isfinite(features[:, :6]).all()


def test_cohort_of_equal_people_has_spreads_above_zero():
    found = fit_reference(np.repeat(people(1), 30, axis=0))
    assert (found.spreads > 0).all()
    np.testing.assert_allclose(relate(people(1), found).features, 0, atol=1e-6)


def test_large_cohort_gives_the_same_reference(monkeypatch):
    cohort = people(600)
    whole = fit_reference(cohort)
    monkeypatch.setattr("scripts.solf.reference._MAX_CASES", 300)
    half = fit_reference(cohort)
    assert not np.array_equal(half.medians, whole.medians)
    person = people(50, seed=8)
    assert np.abs(relate(person, half).features - relate(person, whole).features).max() < 0.8


def test_people_do_not_depend_on_each_other(reference, monkeypatch):
    cohort = people(7, seed=6)
    together = relate(cohort, reference)
    monkeypatch.setattr("scripts.solf.reference._CASES_AT_ONCE", 2)
    parts = relate(cohort, reference)
    alone = relate(cohort[3:4], reference)
    np.testing.assert_allclose(parts.features, together.features, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(alone.features[0], together.features[3], rtol=1e-9, atol=1e-9)


def test_measures_are_arranged_by_person_and_organ():
    table = {f"centroid_{axis}_mm": np.array([1.0, 2, 3]) for axis in "xyz"} | {"volume_mm3": np.exp([4.0, 5, 6])}
    arranged = measures(table, np.array([0, 0, 1]), np.array([2, 0, 1]), 3)
    assert arranged.shape == (2, 3, 4)
    np.testing.assert_allclose(arranged[0, 2], [4, 1, 1, 1])
    np.testing.assert_allclose(arranged[1, 1], [6, 3, 3, 3])
    assert np.isnan(arranged).sum() == 3 * 4


def test_median_is_numpys_without_nan():
    values = np.random.default_rng(0).normal(size=(30, 9))
    values[np.random.default_rng(1).random(values.shape) < 0.4] = np.nan
    values[3] = np.nan
    for axis in (0, 1):
        kept = np.delete(values, 3, axis=0)
        np.testing.assert_allclose(median(kept, axis=axis), np.nanmedian(kept, axis=axis))
    assert np.isnan(median(values, axis=1)[3])
