import random
from itertools import pairwise

import pytest

from scripts.common.errors import InputError
from scripts.data.subsets import share_of_subjects

CASES = [{"image": f"/data/{n}_{visit}.nii.gz", "patient": f"p{n}"} for n in range(40) for visit in (1, 2)]
SHARES = [0.01, 0.1, 0.2, 0.25, 0.5, 0.9, 1.0]


def names(cases):
    return {case["image"] for case in cases}


def test_subset_of_a_smaller_share_is_contained_in_that_of_a_larger_one():
    subsets = [names(share_of_subjects(CASES, share=share, seed=3)) for share in SHARES]
    assert all(one < other for one, other in pairwise(subsets))
    assert [len(subset) for subset in subsets] == [2, 8, 16, 20, 40, 72, 80]


def test_all_scans_of_a_subject_stay_together_and_in_their_order():
    found = share_of_subjects(CASES, share=0.3, seed=0)
    assert found == [case for case in CASES if case["patient"] in {case["patient"] for case in found}]


def test_subset_depends_on_the_seed_but_not_on_the_order():
    shuffled = random.Random(0).sample(CASES, len(CASES))
    first = names(share_of_subjects(CASES, share=0.3, seed=0))
    assert names(share_of_subjects(shuffled, share=0.3, seed=0)) == first
    assert names(share_of_subjects(CASES, share=0.3, seed=1)) != first


def test_subject_without_a_name_is_its_image(caplog):
    cases = [{"image": ["/a/t1.nii.gz", "/a/t2.nii.gz"]}, {"image": ["/b/one.nii.gz", "/b/two.nii.gz"]}]
    with caplog.at_level("INFO"):
        assert len(share_of_subjects(cases, share=0.1, seed=0)) == 1
    assert caplog.messages == ["data_share 0.1: training with 1 of 2 subjects, 1 of 2 cases"]


@pytest.mark.parametrize("share", [0, -1, 1.1, "half", float("nan")])
def test_other_shares_are_refused(share):
    with pytest.raises(InputError, match=f"data_share is {share!r}: give a number from 0.001 to 1"):
        share_of_subjects(CASES, share=share, seed=0)


def test_fewer_cases_than_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"data_share 0\.01 leaves 2 cases for 4 processes: start fewer"):
        share_of_subjects(CASES, share=0.01, seed=0)
