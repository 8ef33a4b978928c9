import pytest
import torch
from torch.nn.functional import interpolate, leaky_relu, max_pool2d

from scripts.common.errors import InputError
from scripts.models.universeg import UniverSeg
from scripts.models.weights import load_weights
from tests.scripts.models.tiny_networks import saved, state_of

SMALL = [6, 5, 4]


def episode(*, targets=1, support=5, sets=None, size=(16, 24), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = targets if sets is None else sets
    images = torch.rand(sets, support, 1, *size, generator=generator)
    labels = (torch.rand(sets, support, 1, *size, generator=generator) > 0.5).float()
    return torch.rand(targets, 1, *size, generator=generator), images, labels


def network_of(features=SMALL, seed=0, **options):
    torch.manual_seed(seed)
    network = UniverSeg(features=features, **options).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:  # the biases start as 0
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def literal(network, image, images, labels):
    """The formulas of the specification, one after the other, on the same weights."""

    def each(module, features):
        return module(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def up(features):
        return interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)

    def block(module, t, s):
        joined = torch.cat([t[:, None].expand(-1, s.shape[1], -1, -1, -1), s], dim=2)
        z = each(module.cross["cross_conv"], joined)
        t = leaky_relu(module.target["vmapped"]["conv"](z.mean(1)), 0.01)
        return t, leaky_relu(each(module.support["vmapped"]["conv"], z), 0.01)

    t, s, skips = image, torch.cat([images, labels], dim=2), []
    for index, module in enumerate(network.enc_blocks):
        if index:
            skips.append((t, s))
            t, s = max_pool2d(t, 2), each(lambda x: max_pool2d(x, 2), s)
        t, s = block(module, t, s)
    for module in network.dec_blocks:
        skip_t, skip_s = skips.pop()
        t, s = torch.cat([up(t), skip_t], dim=1), torch.cat([each(up, s), skip_s], dim=2)
        t, s = block(module, t, s)
    return network.out_conv["conv"](t)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_logits_are_those_of_the_formulas():
    for features in (SMALL, [3, 3], [4, 4, 4, 4]):
        network = network_of(features)
        given = episode(targets=2)
        torch.testing.assert_close(network(*given), literal(network, *given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_do_not_change_the_logits(chunk):
    given = episode(targets=2)
    torch.testing.assert_close(network_of(chunk=chunk)(*given), network_of()(*given), rtol=1e-4, atol=1e-5)


def test_chunks_hold_no_more_features_for_more_support(monkeypatch):
    """The largest batch of support images that any convolution gets."""
    network, seen = network_of(chunk=2), []
    for block in [*network.enc_blocks, *network.dec_blocks]:
        block.support["vmapped"]["conv"].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    network(*episode(support=2))
    small, seen[:] = max(seen), []
    network(*episode(support=9))
    assert max(seen) == small == 2


def test_support_prepared_once_serves_many_targets():
    network, (targets, images, labels) = network_of(), episode(targets=3, sets=1)
    support = network.prepare(images, labels)
    alone = torch.cat([network.segment(target[None], support) for target in targets])
    torch.testing.assert_close(alone, network(targets, images, labels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        alone, literal(network, targets, *(s.expand(3, -1, -1, -1, -1) for s in (images, labels)))
    )


def test_order_and_repetition_of_the_support_do_not_matter():
    network, (target, images, labels) = network_of(), episode()
    expected = network(target, images, labels)
    order = torch.tensor([3, 1, 4, 0, 2] * 2)
    torch.testing.assert_close(network(target, images[:, order], labels[:, order]), expected, rtol=1e-4, atol=1e-5)


def test_sizes_that_are_no_multiples_are_padded_and_cropped():
    network, given = network_of(), episode(size=(13, 18))
    logits = network(*given)
    assert logits.shape == (1, 1, 13, 18)
    below, right = 3, 2
    padded = [torch.nn.functional.pad(x.flatten(0, -4), (0, right, 0, below), mode="replicate") for x in given]
    padded = [p.unflatten(0, x.shape[:-3]) for p, x in zip(padded, given, strict=True)]
    torch.testing.assert_close(logits, literal(network, *padded)[..., :13, :18], rtol=1e-4, atol=1e-5)


def test_all_parameters_but_the_unused_ones_get_a_gradient():
    network = network_of()
    with torch.enable_grad():
        network(*episode()).square().mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {f"dec_blocks.1.support.vmapped.conv.{kind}" for kind in ("weight", "bias")}
    assert not any(parameter.requires_grad for name, parameter in network.named_parameters() if name in without)


def test_initial_weights_have_the_published_deviations():
    network = UniverSeg()
    expected = {"enc_blocks.0.cross.cross_conv": 0.192, "enc_blocks.1.target.vmapped.conv": 0.0589}
    expected |= {"dec_blocks.0.cross.cross_conv": 0.0208}
    for name, deviation in expected.items():
        assert network.get_submodule(name).weight.std().item() == pytest.approx(deviation, rel=0.1), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, i, m: (t, i[:, :0], m[:, :0]), r"support images: \(1, 0, 1, 16, 24\); give images and labels"),
        (lambda t, i, m: (t,), "support images: none; give images and labels"),
        (lambda t, i, m: (t, i, m[..., :8]), r"have shapes \(1, 5, 1, 16, 24\) and \(1, 5, 1, 16, 8\)"),
        (lambda t, i, m: (t[..., :8], i, m), r"shape \(1, 1, 16, 8\), support images \(16, 24\): give \(B, 1, H, W\)"),
    ],
)
def test_wrong_support_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        network_of()(*change(*episode()))


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"weights of another network: 32 of 32 tensors missing, 103 unexpected"):
        load_weights(network_of(), saved(tmp_path / "model.pt", state_of()))
