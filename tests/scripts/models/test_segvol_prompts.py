import math

import pytest
import torch

from scripts.models.segvol_prompts import PromptEncoder


@pytest.fixture
def encoder():
    """Of the published sizes, with two channels and the first frequency of each axis alone."""
    torch.manual_seed(0)
    return PromptEncoder(2, image_size=(32, 256, 256), grid_size=(8, 16, 16)).requires_grad_(False)


def frequencies(encoder, *values):
    encoder.pe_layer.positional_encoding_gaussian_matrix.copy_(torch.tensor(values)[:, None])


@pytest.mark.parametrize(
    ("voxel", "coordinates"),
    [
        ((0, 0, 0), (0.5 / 256, 0.5 / 32, 0.5 / 256)),
        ((31, 255, 255), (31.5 / 256, 255.5 / 32, 255.5 / 256)),
        ((15, 127, 127), (0.060546875, 3.984375, 0.498046875)),
    ],
)
def test_prompts_are_divided_by_height_depth_and_width(encoder, voxel, coordinates):
    """The weights were trained so; the largest coordinate along the height is 7.98, not 1."""
    torch.testing.assert_close(encoder.normalized(torch.tensor(voxel)), torch.tensor(coordinates))


@pytest.mark.parametrize(("axis", "share"), [(0, 10.5 / 256), (1, 100.5 / 32), (2, 200.5 / 256)])
def test_code_is_sine_then_cosine_of_the_coordinate_of_each_axis(encoder, axis, share):
    frequencies(encoder, *(0.25 if i == axis else 0.0 for i in range(3)))
    angle = 2 * math.pi * (2 * share - 1) * 0.25
    code = encoder.pe_layer(encoder.normalized(torch.tensor([10, 100, 200])))
    torch.testing.assert_close(code, torch.tensor([math.sin(angle), math.cos(angle)]))


@pytest.mark.parametrize(("axis", "share"), [(0, 5.5 / 16), (1, 2.5 / 8), (2, 11.5 / 16)])
def test_code_of_the_grid_is_of_shares_in_the_order_height_depth_width(encoder, axis, share):
    """So that a place has another code than a prompt at it."""
    frequencies(encoder, *(0.25 if i == axis else 0.0 for i in range(3)))
    angle = 2 * math.pi * (2 * share - 1) * 0.25
    code = encoder.grid_code()
    assert code.shape == (1, 2, 8, 16, 16)
    torch.testing.assert_close(code[0, :, 2, 5, 11], torch.tensor([math.sin(angle), math.cos(angle)]))


def test_tokens_are_points_then_box_then_text_with_their_kind_added(encoder):
    frequencies(encoder, 0.0, 0.0, 0.0)  # each place is coded as (0, 1)
    kinds = torch.stack([embedding.weight[0] for embedding in encoder.point_embeddings])
    points, labels = torch.zeros(1, 3, 3, dtype=torch.int64), torch.tensor([[1, 0, -1]])
    text = torch.tensor([[7.0, 8.0]])
    tokens = encoder(points=points, point_labels=labels, boxes=torch.zeros(1, 6), text=text)[0]
    place = torch.tensor([0.0, 1.0])
    expected = [place + kinds[1], place + kinds[0], encoder.not_a_point_embed.weight[0]]
    torch.testing.assert_close(tokens, torch.stack([*expected, place + kinds[2], place + kinds[3], text[0]]))


def test_points_without_a_box_are_followed_by_an_ignored_one(encoder):
    points, labels = torch.zeros(2, 1, 3), torch.ones(2, 1, dtype=torch.int64)
    tokens = encoder(points=points, point_labels=labels)
    assert tokens.shape == (2, 2, 2)
    torch.testing.assert_close(tokens[:, 1], encoder.not_a_point_embed.weight.expand(2, -1))
    assert encoder(points=points, point_labels=labels, boxes=torch.zeros(2, 6)).shape == (2, 3, 2)


def test_place_of_an_ignored_point_does_not_matter(encoder):
    labels = torch.tensor([[-1]])
    one, other = (encoder(points=torch.full((1, 1, 3), n), point_labels=labels) for n in (-1.0, 5.0))
    assert torch.equal(one, other)


def test_without_a_prompt_there_is_no_token(encoder):
    assert encoder().shape == (1, 0, 2)
