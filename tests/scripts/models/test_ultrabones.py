import pytest
import torch
from torch.nn.functional import conv2d, group_norm, interpolate, relu

from scripts.common.errors import InputError
from scripts.models.ultrabones import UltraBones
from scripts.models.universeg import UniverSeg
from scripts.models.weights import load_weights
from tests.scripts.models.tiny_networks import saved

SMALL = {"blocks": [1, 2, 1, 1], "features": [4, 6, 8, 10], "pyramid_channels": 12, "segmentation_channels": 32}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def network_of(seed=0, **options):
    torch.manual_seed(seed)
    network = UltraBones(**{**SMALL, **options}).eval()
    for name, tensor in network.state_dict().items():  # neither 0 nor 1, so that each counts
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(len(tensor)) + (0.5 if name.endswith(("var", "weight")) else 0))
    return network


def literal(state, image):
    """The formulas of the specification, one after the other."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"].reshape(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv(x, name, **options):
        return conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def up(x, factor):
        size = [factor * n for n in x.shape[2:]]
        return interpolate(x, size=size, mode="bilinear", align_corners=True)

    x = relu(norm(conv(image, "encoder.conv1", stride=2, padding=3), "encoder.bn1"))
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    stages = []
    for layer in range(1, 5):
        block = 0
        while f"encoder.layer{layer}.{block}.conv1.weight" in state:
            name = f"encoder.layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            out = relu(norm(conv(x, f"{name}.conv1", stride=stride, padding=1), f"{name}.bn1"))
            out = norm(conv(out, f"{name}.conv2", padding=1), f"{name}.bn2")
            if stride == 2:
                x = norm(conv(x, f"{name}.downsample.0", stride=2), f"{name}.downsample.1")
            x, block = relu(out + x), block + 1
        stages.append(x)
    levels = [conv(stages[3], "decoder.p5")]
    for name, skip in zip(("p4", "p3", "p2"), stages[2::-1], strict=True):
        below = levels[-1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels.append(below + conv(skip, f"decoder.{name}.skip_conv"))
    total = 0
    for k, (level, units, doubles) in enumerate(zip(levels, (3, 2, 1, 1), (True, True, True, False), strict=True)):
        for j in range(units):
            name = f"decoder.seg_blocks.{k}.block.{j}.block"
            level = conv(level, f"{name}.0", padding=1)
            level = relu(group_norm(level, 32, state[f"{name}.1.weight"], state[f"{name}.1.bias"]))
            level = up(level, 2) if doubles else level
        total = total + level
    return up(conv(total, "segmentation_head.0"), 4)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_logits_are_those_of_the_formulas(size):
    network = network_of()
    image = torch.rand(2, 1, *size)
    torch.testing.assert_close(network(image), literal(network.state_dict(), image), rtol=1e-4, atol=1e-4)


def test_size_that_32_does_not_divide_is_padded_by_its_edge_and_cropped():
    network, image = network_of(), torch.rand(1, 1, 40, 64)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 24, -1)], dim=2)
    assert torch.equal(network(image), network(padded)[:, :, :40])


def test_dropout_is_of_training_alone():
    network, image = network_of(), torch.rand(1, 1, 64, 64)
    assert torch.equal(network(image), network(image))
    network.decoder.dropout.train()
    assert not torch.equal(network(image), network(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [1, 1, 1]}, r"blocks is \[1, 1, 1\] .*: give four numbers from 1 each"),
        ({"features": [4, 4, 0, 4]}, r"features \[4, 4, 0, 4\]: give four numbers from 1 each"),
        ({"segmentation_channels": 48}, "segmentation_channels is 48: give a multiple of 32"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        UltraBones(**{**SMALL, **options})


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32), (0, 1, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"give \(B, 1, H, W\)"):
        network_of()(torch.rand(shape))


def test_weights_load_strictly_and_those_of_another_network_are_refused(tmp_path):
    network, other = network_of(0), network_of(1)
    load_weights(other, saved(tmp_path / "model.pt", network.state_dict()))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(InputError, match="weights of another network"):
        load_weights(network, saved(tmp_path / "universeg.pt", UniverSeg(features=[4, 4]).state_dict()))


class TestEncoderWeights:
    """Of a file as torchvision publishes them."""

    @staticmethod
    def colour_state(**changes):
        state = {key: value.clone() for key, value in network_of(1).encoder.state_dict().items()}
        state["conv1.weight"] = torch.rand(4, 3, 7, 7)
        return {**state, "fc.weight": torch.rand(1000, 10), "fc.bias": torch.rand(1000), **changes}

    def test_gray_image_gives_what_a_gray_picture_of_three_colours_gave(self, tmp_path):
        state = self.colour_state()
        network = UltraBones(**SMALL, encoder_weights=saved(tmp_path / "resnet.pth", state))
        image = torch.rand(1, 1, 32, 32)
        expected = conv2d(image.expand(-1, 3, -1, -1), state["conv1.weight"], stride=2, padding=3)
        torch.testing.assert_close(network.encoder.conv1(image), expected)
        assert torch.equal(network.encoder.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])

    def test_old_files_without_counters_of_batches_load(self, tmp_path):
        state = {key: value for key, value in self.colour_state().items() if "num_batches" not in key}
        network = UltraBones(**SMALL, encoder_weights=saved(tmp_path / "resnet.pth", state))
        assert torch.equal(network.encoder.bn1.running_var, state["bn1.running_var"])

    def test_weights_of_another_encoder_are_refused(self, tmp_path):
        path = saved(tmp_path / "resnet.pth", self.colour_state(**{"layer1.0.conv1.weight": torch.rand(5, 4, 3, 3)}))
        with pytest.raises(InputError, match=r"weights of another encoder, 1 .*layer1.0.conv1.weight: file \(5, 4"):
            UltraBones(**SMALL, encoder_weights=path)
        path = saved(tmp_path / "more.pth", self.colour_state(**{"layer1.9.conv1.weight": torch.rand(4)}))
        with pytest.raises(InputError, match=r"weights of another encoder, 1 .*first: layer1.9.conv1.weight"):
            UltraBones(**SMALL, encoder_weights=path)
