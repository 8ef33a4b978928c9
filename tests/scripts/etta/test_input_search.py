import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d, separable_filtering

from scripts.common.errors import InputError
from scripts.etta.guard import PredictionStats, measure
from scripts.etta.handler import ETTAHandler
from scripts.etta.input_candidates import Gamma, changed, intensities
from scripts.etta.input_search import choose_input, gammas, score
from scripts.etta.settings import ETTASettings
from scripts.etta.spectrum import TrainingSpectrum
from scripts.inference.window_layout import WindowLayout
from scripts.models.compiled import export_compiled
from tests.scripts.etta.test_handler import evaluator, predictions
from tests.scripts.etta.tiny_network import (
    INFERER,
    INPUT,
    PROTOTYPES,
    Prototypes,
    Tiny,
    assert_restored,
    blocks,
    image,
    plain,
    predict,
    state,
)

SHIFTS = {
    "gamma 0.63": lambda x: x**1.6,
    "gamma 0.8": lambda x: x**1.26,
    "gamma 1.6": lambda x: x**0.63,
    "gamma 2.5": lambda x: x**0.4,
}


def choose(network, x, settings=INPUT):
    return choose_input(network, x, WindowLayout.of(INFERER, x.shape[2:]), settings)


@pytest.mark.parametrize("undone", SHIFTS)
def test_shift_is_undone(undone):
    network, x = Prototypes(), SHIFTS[undone](blocks())
    found, outcome = choose(network, x)
    assert (outcome.accepted, outcome.candidate, outcome.reason) == (True, undone, "entropy dropped")
    assert outcome.entropy_after < outcome.entropy_before
    assert outcome.foreground_entropy_after <= 0.97 * outcome.foreground_entropy_before
    assert (found - blocks()).abs().mean() < 0.5 * (x - blocks()).abs().mean()
    assert not torch.equal(predict(network, x, INPUT)[0], plain(network, x))
    assert torch.equal(predict(network, x, INPUT)[0], plain(network, found))


def test_clean_image_is_refused_and_predicted_bit_for_bit():
    network, x = Prototypes(), blocks()
    found, outcome = choose(network, x)
    assert found is x
    assert not outcome.accepted
    assert outcome.candidate
    assert outcome.reason == "entropy did not drop"
    assert outcome.entropy_after == outcome.entropy_before
    assert torch.equal(predict(network, x, INPUT)[0], plain(network, x))


def test_too_small_a_drop_of_the_foreground_entropy_is_refused():
    _, accepted = choose(Prototypes(), blocks(size=8) ** 1.6)
    drop = 1 - accepted.foreground_entropy_after / accepted.foreground_entropy_before
    for least, expected in ((drop - 0.001, True), (drop + 0.001, False)):
        settings = ETTASettings(adapt="input", min_entropy_drop=least)
        _, outcome = choose(Prototypes(), blocks(size=8) ** 1.6, settings)
        assert outcome.accepted is expected


def test_a_lost_organ_may_come_back_but_none_may_vanish():
    x = blocks(size=8) ** 1.6
    _, outcome = choose(Prototypes(), x, ETTASettings(volume_band=(0.5, 1.0)))
    assert outcome.accepted

    class Fading(Prototypes):
        """Sees background alone where the image is bright, and is certain of it."""

        def forward(self, window):
            logits = super().forward(window)
            logits[:, 0] += 99 * (window.mean() > 1.1 * x.mean())
            return logits

    _, outcome = choose(Fading(), x)
    assert not outcome.accepted
    assert outcome.reason.startswith("volume of class")


def stats(entropy, foreground_entropy):
    return PredictionStats([entropy], [(foreground_entropy, 1.0)], [0.5], [torch.tensor([10, 10])])


def test_score_is_the_sum_of_the_logarithms_of_both_ratios():
    assert score(stats(0.4, 0.8), stats(0.2, 0.2)) == pytest.approx(np.log(0.5) + np.log(0.25))
    assert score(stats(0.4, 0.8), stats(float("nan"), 0.2)) == np.inf
    assert score(stats(0.4, 0.8), stats(0.4, float("inf"))) == np.inf


def looked_at(stage, entropies):
    """Names of the changes that a stage looks at, if these have these entropies and all others more."""
    looked = []

    def look(change):
        looked.append(str(change))
        value = entropies.get(str(change), 2.0)
        return stats(value, value)

    assert [str(change) for change in stage(look, stats(1.0, 1.0))] == looked
    return looked


@pytest.mark.parametrize(
    ("low", "high", "second"),
    [
        (1.1, 1.2, []),
        (1.2, 1.1, []),
        (0.9, 1.1, ["gamma 0.4", "gamma 0.8"]),
        (0.8, 0.9, ["gamma 0.4", "gamma 0.8"]),
        (0.9, 0.8, ["gamma 2.5", "gamma 1.26"]),
        (1.1, 0.9, ["gamma 2.5", "gamma 1.26"]),
    ],
)
def test_second_round_of_gammas_follows_what_won_the_first(low, high, second):
    found = looked_at(gammas, {"gamma 0.63": low, "gamma 1.6": high})
    assert found == ["gamma 0.63", "gamma 1.6", *second]


def test_candidates_are_looked_at_on_two_windows_and_the_last_on_all():
    network, x = Prototypes(), blocks(size=32) ** 1.6
    _, outcome = choose(network, x)
    assert outcome.accepted
    assert outcome.windows > 4
    assert network.calls in [2 * outcome.windows + 2 * looks for looks in (3, 4)]
    assert network.calls < 3 * outcome.windows


# Sharpness and places


def tube(*, size=40):
    """Organs of all intensities side by side along two axes, constant along the third."""
    cells = torch.randint(0, 4, (1, 1, size // 4, size // 4, 1), generator=torch.Generator().manual_seed(0))
    return torch.tensor(PROTOTYPES)[cells].repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, -1, -1, -1, size)


def spectrum_of(*images):
    return TrainingSpectrum.of(image[0] for image in images)


def test_blurred_image_is_filtered_to_the_spectrum_of_the_training_images():
    sharp = tube()
    x = separable_filtering(sharp, [gaussian_1d(torch.tensor(0.6))] * 3, mode="replicate").clamp(0, 1)
    settings = ETTASettings(spectrum=spectrum_of(sharp))
    found, outcome = choose(Prototypes(), x, settings)
    assert (outcome.accepted, outcome.candidate) == (True, "spectrum")
    assert (found - sharp).abs().mean() < 0.6 * (x - sharp).abs().mean()
    _, refused = choose(Prototypes(), sharp, settings)
    assert not refused.accepted
    assert "spectrum" not in refused.candidate


def test_a_filter_needs_less_of_a_drop_than_a_gamma_unless_the_user_says_how_much():
    sharp = tube()
    x = separable_filtering(sharp, [gaussian_1d(torch.tensor(0.6))] * 3, mode="replicate").clamp(0, 1)
    _, outcome = choose(Prototypes(), x, ETTASettings(spectrum=spectrum_of(sharp)))
    drop = 1 - outcome.foreground_entropy_after / outcome.foreground_entropy_before
    assert drop > ETTASettings().least_drop("spectrum")
    assert ETTASettings().least_drop("spectrum") < ETTASettings().least_drop("input")
    _, refused = choose(Prototypes(), x, ETTASettings(spectrum=spectrum_of(sharp), min_entropy_drop=drop + 0.001))
    assert not refused.accepted


def test_spectrum_of_other_channels_is_refused():
    with pytest.raises(InputError, match="has 2 channels and 3 axes, the image 1 and 3"):
        choose(Prototypes(), tube(), ETTASettings(spectrum=spectrum_of(tube().repeat(1, 2, 1, 1, 1))))


def test_no_gamma_is_tried_where_intensities_differ_from_place_to_place():
    x = tube() ** 1.3
    drifting = x * torch.linspace(0.75, 1.05, x.shape[-1])
    tried, left_out = (choose(Prototypes(), image)[1] for image in (x, drifting))
    assert tried.candidate.startswith("gamma")
    assert (left_out.candidate, left_out.reason) == ("", "intensities differ from place to place")


# Channels


def channels(**shifts):
    """An image of three channels, of which the second is absent."""
    x = blocks().repeat(1, 3, 1, 1, 1)
    x[:, 1] = 0
    for channel, undone in shifts.items():
        number = int(channel[-1])
        x[:, number] = SHIFTS[undone](x[:, number])
    return x


class Channels(Prototypes):
    """Judges each channel by itself, as a network does that was trained on them."""

    def forward(self, x):
        return torch.stack([super(Channels, self).forward(x[:, [c]]) for c in (0, 2)]).mean(dim=0)


def test_each_channel_is_decided_by_itself_and_an_absent_one_stays_absent():
    x = channels(c2="gamma 0.63")
    found, outcome = choose(Channels(), x)
    assert (outcome.accepted, outcome.candidate) == (True, "2: gamma 0.63")
    assert torch.equal(found[:, :2], x[:, :2])
    x = channels(c0="gamma 1.6", c2="gamma 0.63")
    found, outcome = choose(Channels(), x)
    assert (outcome.accepted, outcome.candidate) == (True, "0: gamma 1.6; 2: gamma 0.63")
    assert (found[:, 1] == 0).all()
    _, outcome = choose(Channels(), channels())
    assert not outcome.accepted


def test_image_without_contrast_is_left_as_it_is():
    x = torch.zeros(1, 2, 8, 8, 8)
    found, outcome = choose(Prototypes(), x)
    assert found is x
    assert (outcome.accepted, outcome.candidate, outcome.reason) == (False, "", "no channel has contrast")


# Networks


def test_no_gradient_is_taken_and_the_network_stays_as_it_was():
    seen = []

    class Watched(Tiny):
        def forward(self, x):
            seen.append(torch.is_grad_enabled())
            return super().forward(x)

    network = Watched().eval()
    before = state(network)
    with torch.enable_grad():
        choose(network, image())
    assert seen
    assert not any(seen)
    assert_restored(network, before)


def test_any_function_of_windows_is_a_network():
    network = Prototypes()
    assert torch.equal(
        predict(lambda x: network(x), blocks() ** 1.6, INPUT)[0], predict(network, blocks() ** 1.6, INPUT)[0]
    )


def test_compiled_network_adapts_its_input(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    graph = export_compiled(
        Prototypes().eval(), torch.rand(1, 1, 8, 8, 8), tmp_path / "model.pt", tmp_path / "model.ov"
    )
    assert not list(graph.parameters())
    x = blocks() ** 1.6
    pred, (outcome,) = predict(graph, x, INPUT)
    assert (outcome.accepted, outcome.candidate) == (True, "gamma 0.63")
    torch.testing.assert_close(pred, predict(Prototypes(), x, INPUT)[0], rtol=1e-3, atol=1e-3)


def test_works_under_inference_mode_and_autocast():
    expected, (outcome,) = predict(Prototypes(), blocks() ** 1.6, INPUT)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        pred, (again,) = predict(Prototypes(), blocks() ** 1.6, INPUT)
    assert torch.equal(pred, expected)
    assert again.candidate == outcome.candidate


# Determinism


def test_results_do_not_depend_on_the_order_of_cases_nor_on_global_randomness():
    network, cases = Prototypes(), [shift(blocks()) for shift in list(SHIFTS.values())[:3]]
    alone = [predict(Prototypes(), x, INPUT)[0] for x in cases]
    for order in itertools.permutations(range(3)):
        torch.manual_seed(order[0])
        expected = torch.get_rng_state()
        for index in order:
            assert torch.equal(predict(network, cases[index], INPUT)[0], alone[index])
        assert torch.equal(torch.get_rng_state(), expected)


def test_after_entropies_are_those_of_the_image_that_is_predicted():
    network, x = Prototypes(), blocks(size=8) ** 1.6
    _, outcome = choose(network, x)
    moved = changed(x, {0: (Gamma(0.63),)}, intensities(x))
    after = measure(network, [lambda: moved], INPUT)
    assert outcome.entropy_after == after.mean_entropy
    assert outcome.foreground_entropy_after == after.foreground_entropy


# Evaluators


def test_evaluator_writes_candidate_entropies_and_decision(tmp_path):
    items = [{"case": "clean", "image": MetaTensor(blocks()[0])}]
    items += [{"case": "shifted", "image": MetaTensor(blocks()[0] ** 1.6)}]
    engine = evaluator(Prototypes(), items, handlers=[ETTAHandler(INPUT, output_dir=tmp_path)])
    found = predictions(engine)
    assert engine.inferer is INFERER
    assert torch.equal(found["clean"], plain(Prototypes(), blocks()))
    assert torch.equal(found["shifted"], predict(Prototypes(), blocks() ** 1.6, INPUT)[0])
    table = pd.read_csv(tmp_path / "etta.csv").set_index("case")
    assert list(table.columns) == [
        *("accepted", "reason", "candidate", "entropy_before", "entropy_after", "foreground_entropy_before"),
        *("foreground_entropy_after", "seconds", "peak_memory_mb", "windows"),
    ]
    assert table["accepted"].tolist() == [False, True]
    assert table["candidate"]["shifted"] == "gamma 0.63"
    assert table["entropy_after"]["shifted"] < table["entropy_before"]["shifted"]
    assert table["entropy_after"]["clean"] == table["entropy_before"]["clean"]
    assert torch.equal(items[1]["image"], blocks()[0] ** 1.6), "the image of the case is changed"
