import torch

from scripts.universeg.augment import RandEdgeLabeld, RandInvertd, edges


def test_inverted_images_are_bright_where_they_were_dark():
    image = torch.rand(3, 4, 4)
    assert torch.equal(RandInvertd("image", prob=1.0)({"image": image})["image"], 1 - image)
    assert torch.equal(RandInvertd("image", prob=0.0)({"image": image})["image"], image)


def test_edge_of_a_square_is_a_ring():
    mask = torch.zeros(2, 9, 9)
    mask[:, 2:7, 2:7] = 1
    ring = torch.zeros(2, 9, 9)
    ring[:, 1:8, 1:8] = 1
    ring[:, 3:6, 3:6] = 0
    assert torch.equal(edges(mask), ring)
    assert torch.equal(RandEdgeLabeld("label", prob=1.0)({"label": mask})["label"], ring)
    assert torch.equal(RandEdgeLabeld("label", prob=0.0)({"label": mask})["label"], mask)
