from collections import Counter

import pytest

from scripts.common.errors import InputError
from scripts.data.folds import assign_folds, hold_out_fold

PATIENTS = [f"p{n}" for n in range(23)]


@pytest.mark.parametrize("folds", [2, 5, 23])
def test_patients_are_split_into_folds_of_equal_size(folds):
    sizes = Counter(assign_folds(PATIENTS, folds=folds).values())
    assert set(sizes) == set(range(folds))
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_depend_on_the_patients_and_the_seed_only():
    assert assign_folds(PATIENTS, seed=1) == assign_folds([*reversed(PATIENTS), "p0"], seed=1)
    assert assign_folds(PATIENTS, seed=1) != assign_folds(PATIENTS, seed=2)


@pytest.mark.parametrize("folds", [0, 1, 24])
def test_impossible_number_of_folds_is_refused(folds):
    with pytest.raises(InputError, match=rf"^folds is {folds} for 23 patients with labels: give 2 or more"):
        assign_folds(PATIENTS, folds=folds)


def sections(training, validation=(), test=()):
    items = {"training": training, "validation": validation, "test": test}
    return {name: [dict(item) for item in found] for name, found in items.items()}


TRAINING = [{"case": n, "fold": n % 3} for n in range(6)]


def cases(items):
    return [item["case"] for item in items]


def test_fold_is_moved_from_training_to_validation():
    lists = sections(TRAINING, test=[{"case": 9, "fold": 1}])
    hold_out_fold(lists, 1, "list.json")
    assert cases(lists["training"]) == [0, 2, 3, 5]
    assert cases(lists["validation"]) == [1, 4]
    assert not any("fold" in item for items in lists.values() for item in items)


def test_without_a_fold_only_the_numbers_are_removed():
    lists = sections(TRAINING, [{"case": 8, "fold": 0}])
    hold_out_fold(lists, None, "list.json")
    assert cases(lists["training"]) == list(range(6))
    assert lists["validation"] == [{"case": 8}]


@pytest.mark.parametrize(("training", "validation"), [([{"case": 0}], [{"case": 8}]), ([], [])])
def test_datalist_without_folds_and_with_validation_or_without_training_is_unchanged(training, validation):
    lists = sections(training, validation)
    hold_out_fold(lists, 0, "list.json")
    assert lists == sections(training, validation)


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (TRAINING, [], "list.json: fold is 7: give one of 0, 1, 2."),
        (
            [{"case": 0}, {"case": 1}],
            [],
            "list.json: 2 problems; give each .*\ntraining.0.: fold is None",
        ),
        ([*TRAINING, {"case": 7, "fold": "1"}], [], "list.json: 1 problem; .*\ntraining.6.: fold is '1'"),
        ([*TRAINING, {"case": 7, "fold": True}], [], "training.6.: fold is True"),
        (TRAINING, [{"case": 8}], "list.json: 1 problem; .*\nvalidation: 1 cases beside the folds"),
        (
            [{"case": n, "fold": n, "patient": "p1"} for n in range(2)],
            [],
            r"list.json: 1 problem; .*\npatient p1: in the folds \[0, 1\]",
        ),
    ],
)
def test_bad_folds_are_refused(training, validation, message):
    with pytest.raises(InputError, match=message):
        hold_out_fold(sections(training, validation), 7, "list.json")
