import torch

from scripts.universeg.synthetic import deform, synthetic_task


def draw(seed, n=4, size=32):
    return synthetic_task(n, size, torch.Generator().manual_seed(seed))


def test_images_are_scaled_and_masks_binary():
    images, masks = draw(0)
    assert images.shape == masks.shape == (4, 32, 32)
    assert images.flatten(1).amin(1).tolist() == [0] * 4
    assert images.flatten(1).amax(1).tolist() == [1] * 4
    assert masks.unique().tolist() == [0, 1]


def test_seed_decides_the_task():
    assert torch.equal(draw(1)[0], draw(1)[0])
    assert not torch.equal(draw(1)[0], draw(2)[0])


def test_every_image_shows_what_is_to_be_segmented():
    for seed in range(50):
        shares = draw(seed)[1].flatten(1).mean(1)
        assert (shares > 0).all()
        assert (shares < 0.7).all()


def test_images_of_a_task_differ_and_share_their_intensities():
    """The mask's mean intensity tells tasks apart better than images of one task."""
    means = torch.stack([(images * masks).sum((1, 2)) / masks.sum((1, 2)) for images, masks in map(draw, range(30))])
    assert means.std(1).mean() < 0.6 * means.mean(1).std()
    images = draw(0)[0]
    assert not torch.allclose(images[0], images[1], atol=0.1)


def test_deforming_moves_all_channels_alike():
    fields = torch.rand(1, 1, 16, 16).repeat(1, 3, 1, 1)
    moved = deform(fields, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 2])
    assert not torch.allclose(moved, fields, atol=0.1)
