import torch

from scripts.segvol.corrections import draw_click, draw_corrections

SIZE = (8, 12, 16)


def ball(centre, radius):
    grid = torch.stack(torch.meshgrid(*map(torch.arange, SIZE), indexing="ij"), dim=-1)
    return (grid - torch.tensor(centre)).square().sum(-1) <= radius**2


MASK = ball((4, 5, 6), 3)


def test_click_is_positive_where_the_prediction_misses_and_negative_where_it_is_too_much():
    truth = MASK.expand(400, *SIZE)
    shown = ball((4, 5, 8), 3).expand(400, *SIZE)
    torch.manual_seed(0)
    points, labels = draw_click(shown, truth)
    at = (torch.arange(400), *points.T)
    assert torch.equal(truth[at], labels == 1)
    assert torch.equal(shown[at], labels == 0)
    assert 100 < labels.sum() < 300  # both regions have the same size


def test_click_lies_deep_in_a_region_rather_than_on_its_surface():
    torch.manual_seed(0)
    masks = MASK.expand(2000, *SIZE)
    points, _ = draw_click(torch.zeros_like(masks), masks)
    distance = (points - torch.tensor([4, 5, 6])).square().sum(1)
    share = (distance[:, None] == torch.tensor([0, 9])).float().mean(0) / torch.tensor([1.0, 30.0])
    assert MASK.sum() == 123  # one voxel in the middle, 30 at distance 3
    assert share[0] / share[1] > 4


def test_nothing_wrong_means_no_click_for_that_mask_alone():
    masks = torch.stack([MASK, MASK])
    points, labels = draw_click(torch.stack([MASK, ~MASK]), masks)
    assert (points[0].tolist(), labels[0]) == ([-1, -1, -1], -1)
    assert labels[1] >= 0


def test_each_click_answers_the_prediction_by_those_before_it():
    """The network shows one half of the mask by the first click, and too much by the second."""
    masks = MASK.to(torch.int8).expand(2, 3, *SIZE)
    half = torch.arange(SIZE[2]) < 6
    given = []

    def decode(points, labels):
        given.append((points, labels))
        shown = MASK & half if labels.shape[2] == 1 else MASK | ball((4, 5, 14), 1)
        return torch.where(shown, 1.0, -1.0).expand(2, 3, *SIZE).clone().requires_grad_()

    points, labels = draw_corrections(decode, masks, clicks=3)
    assert points.shape == (2, 3, 3, 3)
    assert (points[:, :, 1, 2] >= 6).all()  # in the missed half
    assert (points[:, :, 2, 2] >= 13).all()  # in what is too much
    assert labels.unique(dim=1).tolist() == [[[1, 1, 0]], [[1, 1, 0]]]
    assert [tuple(one.shape) for _, one in given] == [(2, 3, 1), (2, 3, 2)]
    assert torch.equal(given[1][0], points[:, :, :2])


def test_empty_mask_is_never_clicked_positively():
    masks = torch.zeros(1, 2, *SIZE)
    assert (draw_corrections(lambda points, _: masks - 1, masks, clicks=2)[1] == -1).all()
