import math

import pytest
import torch
from einops import rearrange
from torch.nn.functional import conv_transpose3d, gelu, interpolate, layer_norm, relu

from scripts.common.errors import InputError
from scripts.models.segvol import image_encoder
from scripts.models.weights import load_weights
from tests.scripts.models.tiny_networks import TINY_SEGVOL, saved, state_of, tiny_segvol

D, H, W = TINY_SEGVOL["spatial_size"]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def network_of(seed=0):
    network = tiny_segvol(seed=seed)
    for tensor in network.state_dict().values():  # neither 0 nor 1, so that each counts
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(len(tensor)) + 0.5)
    network.mask_decoder.output_upscaling[1].weight.copy_(torch.rand(4, 8, 8, 12) + 0.5)
    return network


IMAGE = torch.rand(1, 1, D, H, W, generator=torch.Generator().manual_seed(0))
POINTS = torch.tensor([[[3, 5, 7], [15, 0, 47], [9, 9, 9]]])
LABELS = torch.tensor([[1, 0, -1]])
BOXES = torch.tensor([[1, 2, 3, 10, 20, 30]])
TEXT = torch.tensor([[0.1 * i for i in range(16)]])


class Formulas:
    """The formulas of the specification, one after the other."""

    def __init__(self, state):
        self.state = state

    def linear(self, x, name):
        bias = self.state.get(f"{name}.bias")
        return x @ self.state[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(self, x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def encode_image(self, image):
        name = "image_encoder"
        x = rearrange(image, "b c (d p) (h q) (w r) -> b (d h w) (p q r c)", p=4, q=8, r=8)
        x = self.linear(x, f"{name}.patch_embedding.patch_embeddings.1")
        x = x + self.state[f"{name}.patch_embedding.position_embeddings"]
        for block in (f"{name}.blocks.{i}" for i in range(2)):
            qkv = self.linear(self.norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            q, k, v = rearrange(qkv, "b n (three head dim) -> three b head n dim", three=3, head=2)
            attention = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v
            x = x + self.linear(rearrange(attention, "b head n dim -> b n (head dim)"), f"{block}.attn.out_proj")
            hidden = gelu(self.linear(self.norm(x, f"{block}.norm2"), f"{block}.mlp.linear1"))
            x = x + self.linear(hidden, f"{block}.mlp.linear2")
        return self.norm(x, f"{name}.norm").transpose(1, 2).reshape(1, 16, 4, 4, 6)

    def code(self, triple):
        angles = 2 * math.pi * ((2 * torch.tensor(triple) - 1) @ self.state[f"prompt_encoder.{MATRIX}"])
        return torch.cat([angles.sin(), angles.cos()])

    def grid_code(self):
        cells = [
            self.code([(h + 0.5) / 4, (d + 0.5) / 4, (w + 0.5) / 6])
            for d in range(4)
            for h in range(4)
            for w in range(6)
        ]
        return torch.stack(cells)[None]

    def prompts(self, points, labels, box, text):
        row = {i: self.state[f"prompt_encoder.point_embeddings.{i}.weight"][0] for i in range(4)}
        no_point = self.state["prompt_encoder.not_a_point_embed.weight"][0]
        tokens = []
        if points is not None:
            for voxel, label in zip(points[0].tolist(), labels[0].tolist(), strict=True):
                coded = self.sparse(voxel)
                tokens.append(no_point if label == -1 else coded + row[label])
            tokens += [no_point] if box is None else []
        if box is not None:
            tokens += [self.sparse(box[0, :3].tolist()) + row[2], self.sparse(box[0, 3:].tolist()) + row[3]]
        if text is not None:
            tokens.append(text[0])
        return tokens

    def sparse(self, voxel):
        d, h, w = (index + 0.5 for index in voxel)
        return self.code([d / H, h / D, w / W])

    def attend(self, q, k, v, name):
        q, k, v = (
            rearrange(self.linear(x, f"{name}.{part}_proj"), "b n (head dim) -> b head n dim", head=2)
            for x, part in zip((q, k, v), "qkv", strict=True)
        )
        x = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.linear(rearrange(x, "b head n dim -> b n (head dim)"), f"{name}.out_proj")

    def decode(self, embedding, points=None, point_labels=None, boxes=None, text=None):
        name = "mask_decoder"
        own = [self.state[f"{name}.iou_token.weight"][0], *self.state[f"{name}.mask_tokens.weight"]]
        t = torch.stack([*own, *self.prompts(points, point_labels, boxes, text)])[None]
        q, p = t, self.grid_code()
        k = (embedding + self.state["prompt_encoder.no_mask_embed.weight"][0, :, None, None, None]).flatten(2).mT
        for i in range(2):
            layer = f"{name}.transformer.layers.{i}"
            q = (
                self.attend(q, q, q, f"{layer}.self_attn")
                if i == 0
                else q + self.attend(q + t, q + t, q, f"{layer}.self_attn")
            )
            q = self.norm(q, f"{layer}.norm1")
            q = self.norm(q + self.attend(q + t, k + p, k, f"{layer}.cross_attn_token_to_image"), f"{layer}.norm2")
            q = self.norm(
                q + self.linear(relu(self.linear(q, f"{layer}.mlp.lin1")), f"{layer}.mlp.lin2"), f"{layer}.norm3"
            )
            k = self.norm(k + self.attend(k + p, q + t, q, f"{layer}.cross_attn_image_to_token"), f"{layer}.norm4")
        q = q + self.attend(q + t, k + p, k, f"{name}.transformer.final_attn_token_to_image")
        token = self.norm(q, f"{name}.transformer.norm_final_attn")[:, 1]
        up = f"{name}.output_upscaling"
        x = conv_transpose3d(
            k.mT.reshape(1, 16, 4, 4, 6), self.state[f"{up}.0.weight"], self.state[f"{up}.0.bias"], stride=2
        )
        x = gelu(layer_norm(x, x.shape[1:], self.state[f"{up}.1.weight"], self.state[f"{up}.1.bias"]))
        x = gelu(conv_transpose3d(x, self.state[f"{up}.3.weight"], self.state[f"{up}.3.bias"], stride=2))
        for i in range(3):
            token = self.linear(token, f"{name}.output_hypernetworks_mlps.0.layers.{i}")
            token = relu(token) if i < 2 else token
        mask = (token[..., None, None, None] * x).sum(1, keepdim=True)
        if text is not None:
            aligned = self.linear(text, f"{name}.txt_align_upscaled_embedding")
            mask = mask + (aligned[..., None, None, None] * x).sum(1, keepdim=True)
        return interpolate(mask, size=(D, H, W), mode="trilinear", align_corners=False)


MATRIX = "pe_layer.positional_encoding_gaussian_matrix"


def test_embedding_is_that_of_the_formulas():
    network = network_of()
    embedding = network.encode_image(IMAGE)
    torch.testing.assert_close(embedding, Formulas(network.state_dict()).encode_image(IMAGE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prompts",
    [
        {"points": POINTS, "point_labels": LABELS},
        {"boxes": BOXES},
        {"text": TEXT},
        {"points": POINTS, "point_labels": LABELS, "boxes": BOXES, "text": TEXT},
        {},
    ],
    ids=["points", "box", "text", "all", "none"],
)
def test_logits_are_those_of_the_formulas(prompts):
    network = network_of()
    expected = Formulas(network.state_dict()).decode(network.encode_image(IMAGE), **prompts)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(IMAGE, **prompts), expected, rtol=1e-4, atol=1e-5)


def test_one_embedding_serves_several_prompts():
    network = network_of()
    boxes = torch.cat([BOXES, torch.tensor([[0, 0, 0, 5, 6, 7]])])
    together = network.decode(network.encode_image(IMAGE), boxes=boxes)
    assert together.shape == (2, 1, D, H, W)
    torch.testing.assert_close(together, torch.cat([network(IMAGE, boxes=box[None]) for box in boxes]))


def test_what_no_output_depends_on_needs_no_gradient_and_all_else_does():
    network = network_of().train()
    with torch.enable_grad():
        text = network.encode_text(torch.tensor([[49406, 5, 49407]]))
        logits = network(IMAGE, points=POINTS, point_labels=LABELS, boxes=BOXES, text=text)
        logits.square().sum().backward()
    parameters = dict(network.named_parameters())
    assert {key for key, value in parameters.items() if value.grad is None} == {
        key for key, value in parameters.items() if not value.requires_grad
    }
    assert not any(value.requires_grad for key, value in parameters.items() if "clip_text_model" in key)
    assert parameters["text_encoder.dim_align.weight"].grad is not None


def test_image_encoder_alone_has_the_names_of_a_vit():
    encoder = image_encoder((16, 32, 32), (4, 8, 8), hidden_size=16, mlp_dim=24, num_layers=1, num_heads=2)
    assert "patch_embedding.patch_embeddings.1.weight" in encoder.state_dict()
    assert not [key for key in encoder.state_dict() if "cross" in key]


def test_weights_load_strictly_and_those_of_another_network_are_refused(tmp_path):
    network, other = network_of(0), network_of(1)
    load_weights(other, saved(tmp_path / "model.pt", network.state_dict()))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(InputError, match="weights of another network"):
        load_weights(network, saved(tmp_path / "swin.pt", state_of()))
    with pytest.raises(InputError, match="weights of another network"):
        load_weights(tiny_segvol(spatial_size=[16, 32, 32]), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_size": [16, 32]}, r"spatial_size is \[16, 32\] .*: give three numbers each"),
        ({"patch_size": [4, 8, 9]}, r"patch_size \[4, 8, 9\]: .* divide the first"),
        ({"hidden_size": 20}, "hidden_size is 20: give a multiple of 8, 2, 4"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        tiny_segvol(**options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": POINTS}, "points and point_labels: give both"),
        ({"points": POINTS, "point_labels": LABELS[:, :2]}, "3 points have 2 labels"),
        ({"boxes": BOXES[0]}, r"boxes has shape \(6,\): give \(B, 6\)"),
        ({"text": TEXT[:, :3]}, r"text has shape \(1, 3\): give \(B, 16\)"),
        ({"points": POINTS[..., :2], "point_labels": LABELS}, r"give \(B, N, 3\)"),
    ],
)
def test_prompts_of_other_shapes_are_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        network_of()(IMAGE, **prompts)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"shape \(1, 1, 16, 32, 32\): give \(B, 1, 16, 32, 48\)"):
        network_of()(torch.rand(1, 1, 16, 32, 32))


def test_mixed_precision_gives_nearly_the_same():
    network = network_of()
    prompts = {"points": POINTS, "point_labels": LABELS, "boxes": BOXES, "text": TEXT}
    expected = network(IMAGE, **prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(IMAGE, **prompts)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.2 * float(expected.std()))
