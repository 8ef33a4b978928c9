import pytest
import torch
from monai.transforms import RandFlipd, RandGaussianNoised

from scripts.common.errors import InputError
from scripts.training.sampling import SeededCases
from scripts.universeg.augment import RandEdgeLabeld
from scripts.universeg.episodes import Episodes, Tasks
from scripts.universeg.support import list_support
from tests.scripts.universeg.support_files import transform, write_pictures


def tasks_of(folder, *, classes=(1, 2, 3, 4, 5), n=4, **options):
    cases = list_support(write_pictures(folder, n=n, classes=classes, shape=(40, 40)))
    cases = [{"image": case["image"], "label": case["mask"], "case": case["case"]} for case in cases]

    def load(case):
        loaded = transform(32)({"image": case["image"], "mask": case["label"], "case": case["case"]})
        return {"image": loaded["image"], "label": loaded["mask"]}

    return Tasks(cases, transform=load, progress=False, **options)


def episodes_of(tasks, **options):
    return Episodes(tasks, **{"episodes": 8, "image_size": 32, "support_size": 4, "synthetic_share": 0.0, **options})


def test_every_fifth_class_is_held_out(tmp_path):
    tasks = tasks_of(tmp_path)
    assert tasks.of(held_out=True) == [5]
    assert tasks.of(held_out=False) == [1, 2, 3, 4]


def test_last_of_few_classes_is_held_out(tmp_path):
    assert tasks_of(tmp_path, classes=(1, 2)).of(held_out=True) == [2]


def test_fine_tuning_shares_its_tasks_with_validation(tmp_path):
    tasks = tasks_of(tmp_path, classes=(1, 2), shared=True)
    assert tasks.of(held_out=True) == tasks.of(held_out=False) == [1, 2]


def test_class_that_no_label_shows_cannot_be_held_out(tmp_path):
    with pytest.raises(InputError, match=r"held_out_classes: no label shows \[7\]; give some of 1, 2"):
        tasks_of(tmp_path, classes=(1, 2), held_out=[7])


def test_episode_has_a_target_and_support_of_other_cases(tmp_path):
    tasks = tasks_of(tmp_path, classes=(1,), held_out=[1])
    episode = episodes_of(tasks, held_out=True, seed=0)[0]
    assert {key: tuple(value.shape) for key, value in episode.items()} == {
        "image": (1, 32, 32),
        "label": (1, 32, 32),
        "support_images": (4, 1, 32, 32),
        "support_labels": (4, 1, 32, 32),
    }
    assert not any(torch.equal(episode["image"], image) for image in episode["support_images"])
    assert episode["label"].unique().tolist() == [0, 1]


def test_training_and_validation_draw_other_classes(tmp_path):
    tasks = tasks_of(tmp_path, held_out=[2])
    assert episodes_of(tasks).classes == [1, 3, 4, 5]
    assert episodes_of(tasks, held_out=True).classes == [2]


def test_without_label_maps_all_episodes_are_synthetic():
    empty = Tasks([], transform=lambda case: case, progress=False)
    assert episodes_of(empty).synthetic_share == 1
    assert episodes_of(empty, seed=0)[0]["image"].shape == (1, 32, 32)


def test_number_of_different_examples_varies_and_they_are_repeated():
    episodes = episodes_of(Tasks([], transform=None, progress=False))
    different = {len(episodes[index]["support_images"].unique(dim=0)) for index in range(40)}
    assert different == {1, 2, 4}


def test_validation_repeats_its_episodes():
    episodes = episodes_of(Tasks([], transform=None, progress=False), seed=3)
    first = episodes[1]
    episodes[0]
    assert torch.equal(episodes[1]["image"], first["image"])


def test_sampler_seeds_an_episode_with_its_transforms():
    noise = [RandGaussianNoised("image", prob=0.9)]
    cases = SeededCases(episodes_of(Tasks([], transform=None, progress=False), image_transforms=noise))
    one, same, other = cases[0, 5], cases[3, 5], cases[0, 6]
    assert torch.equal(one["support_images"], same["support_images"])
    assert not torch.equal(one["image"], other["image"])


def test_task_transforms_change_all_images_alike_and_image_transforms_each_in_its_way():
    empty = Tasks([], transform=None, progress=False)
    plain = episodes_of(empty, seed=1, held_out=True)[0]
    flipped = episodes_of(empty, seed=1, held_out=True, task_transforms=[RandFlipd(["image", "label"], prob=1.0)])[0]
    for key, value in plain.items():
        torch.testing.assert_close(torch.as_tensor(flipped[key]), value.flip(-1, -2))
    noisy = episodes_of(empty, seed=1, held_out=True, image_transforms=[RandGaussianNoised("image", prob=1.0)])[0]
    noise = noisy["support_images"] - plain["support_images"]
    assert not torch.allclose(noise[0], noise[1])


def test_transforms_that_empty_the_target_are_undone(tmp_path):
    class Emptied(RandEdgeLabeld):
        def __call__(self, data):
            return {**data, "label": data["label"] * 0}

    empty = Tasks([], transform=None, progress=False)
    assert episodes_of(empty, seed=0, task_transforms=[Emptied("label")])[0]["label"].any()


@pytest.mark.parametrize("options", [{"episodes": 0}, {"support_size": 0}, {"synthetic_share": 1.5}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(InputError, match="give 1 or more; synthetic_share: from 0 to 1"):
        episodes_of(Tasks([], transform=None, progress=False), **options)
