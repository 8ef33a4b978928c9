import pytest
import torch

from scripts.common.errors import InputError
from scripts.segvol.corrections import draw_corrections
from scripts.segvol.losses import PromptLoss
from scripts.segvol.samples import ABSENT, SAMPLE_KEYS, DrawPromptsd
from scripts.segvol.training import MIXES, PrepareTargets, PromptedNetwork
from tests.scripts.models.tiny_networks import tiny_segvol

NAMES = {2: "liver", 5: "left kidney"}
SIZE = (16, 32, 48)


def network():
    return PromptedNetwork(tiny_segvol().train(), class_names=NAMES)


def batch(*, organs=3, pseudo=2, size=2):
    samples = []
    for seed in range(size):
        label, regions = torch.zeros(1, *SIZE), torch.ones(1, *SIZE, dtype=torch.int16)
        label[0, 2:8, 4:20, 5:20], label[0, 9:13, 20:28, 30:40] = 2, 5
        regions[0, 4:12, 10:30, 10:40] = 2
        draw = DrawPromptsd(organs=organs, pseudo=pseudo)
        draw.set_random_state(seed)
        samples.append(draw({"image": torch.rand(1, *SIZE), "label": label, "pseudo": regions}))
    return {key: torch.stack([one[key] for one in samples]) for key in ("image", *SAMPLE_KEYS)}


def test_weights_have_the_names_of_the_network_alone():
    whole, other = network(), network()
    state = whole.state_dict()
    assert set(state) == set(whole.network.state_dict()) == set(tiny_segvol().state_dict())
    torch.nn.init.zeros_(next(other.parameters()))
    assert not other.load_state_dict(state, strict=True).missing_keys
    assert all(torch.equal(value, state[name]) for name, value in other.network.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(dict(list(state.items())[1:]))


def test_each_prompt_gives_what_the_network_gives_for_it_alone():
    """So channels, targets and prompts are in one order."""
    whole, data = network(), batch()
    image, target, _, prompts = PrepareTargets()(data)
    net = whole.network
    with torch.no_grad():
        found = whole(image, **prompts)
        assert found.shape == target.shape == (2, 6 * 3 + 2, *SIZE)
        for case, slot, mix in ((0, 1, 0), (1, 2, 1), (1, 0, 2), (0, 2, 3), (1, 1, 4), (0, 0, 5)):
            points = {key: data[key][case, slot][None] for key in ("points", "point_labels")}
            organ = int(data["organs"][case, slot])
            options = {
                "points": points,
                "box": {"boxes": data["boxes"][case, slot][None]},
                "text": {"text": net.encode_text(whole.tokens[list(NAMES).index(organ)][None])},
            }
            given = {k: v for kind in MIXES[mix].split("+") for k, v in options[kind].items()}
            expected = net.decode(net.encode_image(image[case][None]), **given)
            channel = mix * 3 + slot
            torch.testing.assert_close(found[case, channel], expected[0, 0], atol=1e-5, rtol=1e-4)
            assert torch.equal(target[case, channel], data["target"][case, slot])
        for number, keys in enumerate((("points", "point_labels"), ("boxes",))):
            given = {key: data[key][1, 3 + number][None] for key in keys}
            expected = net.decode(net.encode_image(image[1][None]), **given)
            torch.testing.assert_close(found[1, 18 + number], expected[0, 0], atol=1e-5, rtol=1e-4)
            assert torch.equal(target[1, 18 + number], data["target"][1, 3 + number])


@pytest.mark.parametrize("amp", [False, True])
def test_organs_are_asked_for_by_clicks_that_correct_what_the_clicks_before_showed(amp):
    """After the six kinds of prompts, and before the pseudo masks; the points are no more than the clicks."""
    whole, data = network(), batch()
    image, target, _, prompts = PrepareTargets(clicks=1)(data)
    embedding = whole.network.encode_image(image[1][None])

    def decode(points, labels):
        return whole.network.decode(embedding, points=points[0], point_labels=labels[0])[:, 0][None]

    one = {key: value[1:] for key, value in prompts.items() if torch.is_tensor(value)}
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        torch.manual_seed(0)
        found = whole(image[1:], **one, clicks=3)
        torch.manual_seed(0)
        expected = decode(*draw_corrections(decode, one["masks"], clicks=3))
    assert found.shape == target[1:].shape == (1, 7 * 3 + 2, *SIZE)
    torch.testing.assert_close(found[:, 18:21].float(), expected.float(), atol=0.02 if amp else 1e-5, rtol=1e-4)
    assert torch.equal(target[:, 18:21], data["target"][:, :3])
    assert torch.equal(target[:, 21:], data["target"][:, 3:])


def test_number_of_clicks_is_drawn_by_the_seed_of_the_step():
    torch.manual_seed(0)
    prepare, data = PrepareTargets(clicks=3), batch()
    assert {prepare(data)[3]["clicks"] for _ in range(30)} == {1, 2, 3}
    assert not {"masks", "clicks"} & set(PrepareTargets()(data)[3])


def test_wrong_number_of_clicks_is_refused():
    with pytest.raises(InputError, match="clicks is -1: give 0 or more"):
        PrepareTargets(clicks=-1)


def test_image_is_encoded_once_for_all_prompts_of_a_step():
    whole, calls = network(), []
    whole.network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    image, target, _, prompts = PrepareTargets(clicks=3)(batch())
    PromptLoss(pseudo=2)(whole(image, **prompts), target).backward()
    assert len(calls) == 1


@pytest.mark.parametrize("amp", [False, True])
def test_text_tower_stays_and_all_else_trains_the_linear_layer_behind_it_too(amp):
    whole = network()
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.01)
    image, target, _, prompts = PrepareTargets(clicks=3)(batch())
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = whole(image, **prompts)
    PromptLoss(pseudo=2)(logits, target).backward()
    missing = [key for key, value in whole.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []  # or processes of a distributed training would wait for it
    optimizer.step()
    changed = {key for key, value in whole.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if "clip_text_model" in key]
    assert "text_encoder.dim_align.weight" in changed
    assert not changed - {key for key, _ in whole.network.named_parameters()}


@pytest.mark.parametrize("pseudo", [0, 1])
def test_step_without_any_mask_changes_nothing(pseudo):
    data = batch(pseudo=pseudo)
    data["target"] *= 0
    data["organs"][:, :3] = ABSENT
    whole = network()
    image, target, _, prompts = PrepareTargets()(data)
    loss = PromptLoss(pseudo=pseudo)(whole(image, **prompts), target)
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in whole.parameters() if p.grad is not None)
