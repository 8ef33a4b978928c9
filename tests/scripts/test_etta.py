import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from scripts.etta import ETTAHandler, ETTAInferer, ETTASettings
from scripts.etta.core import affine_parameters
from scripts.etta.guard import Look, look_at, verdict
from scripts.etta.objectives import divergence, foreground_weight, voxel_entropy, window_loss
from scripts.etta.windows import Grid, choose, reference_windows
from scripts.inference import CaseEvaluator

NORMS = {
    "batch": lambda: nn.BatchNorm3d(6),
    "group": lambda: nn.GroupNorm(2, 6),
    "instance": lambda: nn.InstanceNorm3d(6, affine=True),
    "layer": lambda: ChannelsLast(nn.LayerNorm(6)),
}
INFERER = SlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=2, overlap=0.5, mode="gaussian")
WILLING = ETTASettings(steps=2, lr=0.02, min_fall=0.0, volume_band=(0, 100))


class ChannelsLast(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Tiny(nn.Module):
    """Convolution, normalization, convolution; fails at the call `fail_at`."""

    def __init__(self, norm="layer", classes=3, fail_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), NORMS[norm](), nn.GELU(), nn.Conv3d(6, classes, 1))
        self.fail_at, self.calls = fail_at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("out of order")
        return self.body(x)


def image(seed=0, *, size=12, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, size, size, size, generator=generator).cumsum(2)


def state(network):
    parameters = [(p.requires_grad, p.grad, p.detach().clone()) for p in network.parameters()]
    return parameters, [b.clone() for b in network.buffers()], [m.training for m in network.modules()]


def assert_untouched(network, before):
    parameters, buffers, modes = state(network)
    for (flag, grad, value), (flag_before, grad_before, value_before) in zip(parameters, before[0], strict=True):
        assert flag == flag_before
        assert grad is grad_before
        assert torch.equal(value, value_before)
    assert all(map(torch.equal, buffers, before[1]))
    assert modes == before[2]


def plain(network, x, inferer=INFERER):
    with torch.no_grad():
        return inferer(x, network)


def predict(network, x, settings=WILLING, inferer=INFERER):
    adapting = ETTAInferer(inferer, settings)
    with torch.no_grad():
        return adapting(x, network), adapting.outcomes


# Exactness


def test_no_steps_give_the_plain_result_and_look_at_nothing():
    network, x = Tiny().eval(), image(batch=2)
    expected = plain(network, x)
    calls = network.calls
    pred, outcomes = predict(network, x, ETTASettings(steps=0))
    assert torch.equal(pred, expected)
    assert network.calls == 2 * calls
    assert [outcome.reason for outcome in outcomes] == ["steps is 0"] * 2


@pytest.mark.parametrize("norm", NORMS)
def test_each_kind_of_normalization_adapts_and_is_put_back(norm):
    network, x = Tiny(norm).eval(), image()
    expected, before = plain(network, x), state(network)
    pred, (outcome,) = predict(network, x)
    assert outcome.accepted, outcome.reason
    assert outcome.entropy_after < outcome.entropy_before
    assert not torch.equal(pred, expected)
    assert_untouched(network, before)
    assert torch.equal(plain(network, x), expected)


@pytest.mark.parametrize("fail_at", [2, 10, 14, 20])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_network_is_put_back_when_a_case_fails_half_way(norm, fail_at):
    network = Tiny(norm, fail_at=fail_at).eval()
    network.body[0].weight.grad = torch.ones_like(network.body[0].weight)
    network.body[0].bias.requires_grad_(False)
    before = state(network)
    settings = ETTASettings(**{**vars(WILLING), "batch_statistics": "case"})
    with pytest.raises(RuntimeError, match="out of order"):
        predict(network, image(), settings)
    assert_untouched(network, before)


def test_results_do_not_depend_on_the_order_of_cases():
    network, cases = Tiny().eval(), [image(seed, size=8) for seed in range(3)]
    alone = [predict(Tiny().eval(), x)[0] for x in cases]
    for order in itertools.permutations(range(3)):
        for index in order:
            assert torch.equal(predict(network, cases[index])[0], alone[index])


def test_a_batch_is_adapted_image_by_image():
    network, x = Tiny().eval(), image(batch=2)
    both, outcomes = predict(network, x)
    assert len(outcomes) == 2
    for index in range(2):
        assert torch.equal(both[index : index + 1], predict(network, x[index : index + 1])[0])


def test_seed_repeats_and_another_seed_draws_other_windows():
    network, x = Tiny().eval(), image(size=16)
    results = [predict(network, x, ETTASettings(windows_per_step=1, seed=s, guard=False))[0] for s in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_global_randomness_is_neither_used_nor_changed():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    network = Tiny().eval()
    torch.manual_seed(5)
    predict(network, image())
    assert torch.equal(torch.rand(1), expected[0])
    assert np.random.rand() == expected[1]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_whatever_the_caller_does_with_gradients(context):
    network, x = Tiny().eval(), image()
    expected, _ = predict(network, x)
    with context():
        pred = ETTAInferer(INFERER, WILLING)(image(), network)
    assert torch.equal(pred.detach().clone(), expected)
    assert not torch.is_inference(network.body[1].norm.weight)


def test_works_under_autocast():
    network, x = Tiny().eval(), image()
    before = state(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pred, (outcome,) = predict(network, x)
        again = plain(network, x)
    assert outcome.entropy_after < outcome.entropy_before
    assert not torch.equal(pred, again)
    assert_untouched(network, before)


def test_meta_tensor_and_image_smaller_than_a_window():
    network = Tiny().eval()
    x = MetaTensor(image(size=6), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    pred, (outcome,) = predict(network, x)
    assert pred.shape == (1, 3, 6, 6, 6)
    assert torch.equal(pred.affine, x.affine)
    assert outcome.windows == 1


def test_case_statistics_replace_those_of_training():
    network, x = Tiny("batch").eval(), 5 + 3 * image()
    settings = ETTASettings(steps=1, lr=0, batch_statistics="case", guard=False)
    before = state(network)
    pred, _ = predict(network, x, settings, SimpleInferer())
    assert_untouched(network, before)
    network.train()
    with torch.no_grad():
        n = x[0].numel()
        hidden = network.body[0](x)
        mean, var = hidden.mean((0, 2, 3, 4)), hidden.var((0, 2, 3, 4)) * (n - 1) / (n - 1)
        normed = (hidden - mean[:, None, None, None]) / (var[:, None, None, None] + 1e-5).sqrt()
        expected = network.body[3](network.body[2](normed))
    torch.testing.assert_close(pred, expected, rtol=1e-4, atol=1e-4)


# Guard


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lr": 5.0, "min_fall": 0.0}, "volume of class"),
        ({"lr": 1e-4}, "entropy of the foreground fell by 0."),
        ({"lr": 0.0}, "entropy did not fall"),
        ({"lr": 0.05, "min_fall": 0.0, "volume_band": (1, 1), "min_voxels": 0}, "volume of class"),
    ],
)
def test_guard_refuses_and_the_plain_result_is_given_bit_for_bit(settings, reason):
    network, x = Tiny().eval(), image()
    pred, (outcome,) = predict(network, x, ETTASettings(**{"steps": 3, "hold": 0.0, **settings}))
    assert not outcome.accepted
    assert outcome.reason.startswith(reason)
    assert torch.equal(pred, plain(network, x))


def test_infinite_gradients_are_refused_even_without_a_guard():
    network, x = Tiny().eval(), image(size=8)
    x[0, 0, 0, 0, 0] = float("inf")
    _, (outcome,) = predict(network, x, ETTASettings(guard=False))
    assert (outcome.accepted, outcome.reason) == (False, "gradient not finite")


def look(entropy, counts, foreground_entropy=None):
    certainty = (entropy if foreground_entropy is None else foreground_entropy) * 7, 7.0
    return Look([entropy], [certainty], [0.5], [torch.tensor([0.5])], [torch.tensor(counts)])


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (look(0.1, [1000, 500]), ""),
        (look(0.2, [1000, 500]), "entropy did not fall"),
        (look(float("nan"), [1000, 500]), "entropy did not fall"),
        (look(0.1, [1200, 300]), "volume of class 1 would change 0.67-fold"),
        (look(0.1, [700, 800]), "volume of class 1 would change 1.50-fold"),
        (look(0.1, [1000, 600]), ""),
        (look(0.1, [1000, 500], 0.25), "entropy of the foreground fell by -25.0% only"),
        (look(0.1, [1000, 500], 0.195), "entropy of the foreground fell by 2.5% only"),
        (look(0.1, [1000, 500], 0.193), ""),
        (look(0.1, [1000, 500], float("nan")), "entropy of the foreground fell by nan% only"),
    ],
)
def test_verdict(after, reason):
    settings = ETTASettings(volume_band=(0.7, 1.3), min_voxels=100, min_fall=0.03)
    assert verdict(look(0.2, [1000, 500]), after, settings) == reason


@pytest.mark.parametrize(("activation", "expected"), [("softmax", [2 / 3, 0.75]), ("sigmoid", [0.5, 0.75])])
def test_foreground_is_what_is_not_background_or_the_likeliest_channel(activation, expected):
    logits = torch.tensor([[0.0, 0.0], [0.0, -99.0], [0.0, np.log(3)]])[None]
    torch.testing.assert_close(foreground_weight(logits, activation=activation)[0], torch.tensor(expected))


def test_foreground_entropy_is_that_of_all_windows_together():
    both = Look([0.2, 0.4], [(3.0, 4.0), (1.0, 16.0)])
    assert both.foreground_entropy == pytest.approx(4 / 20)
    assert both.mean_entropy == pytest.approx(0.3)
    assert Look([0.2], [(0.0, 0.0)]).foreground_entropy == 0


def test_look_weighs_entropy_by_the_foreground():
    network, x = Tiny().eval(), image(size=8)
    look = look_at(network, [lambda: x], ETTASettings())
    p = network(x).detach().double().softmax(1)
    entropy = -(p * p.log()).sum(1) / np.log(3)
    assert look.foreground_entropy == pytest.approx(float((entropy * (1 - p[:, 0])).sum() / (1 - p[:, 0]).sum()))
    assert look.mean_entropy == pytest.approx(float(entropy.mean()))


def test_best_step_is_kept_unless_the_last_is_asked_for():
    network, x = Tiny().eval(), image()
    overshooting = {"lr": 0.5, "hold": 50.0, "windows_per_step": None, "guard": False}
    entropies = {}
    for steps in (1, 2, 3, 4):
        for keep in ("best", "last"):
            _, (outcome,) = predict(network, x, ETTASettings(steps=steps, keep=keep, **overshooting))
            entropies[keep, steps] = outcome.foreground_entropy_after
    last = [entropies["last", steps] for steps in (1, 2, 3, 4)]
    assert [entropies["best", steps] for steps in (1, 2, 3, 4)] == list(np.minimum.accumulate(last))
    assert last != sorted(last, reverse=True)  # some step overshoots: otherwise this shows nothing


# Objectives


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_entropy_is_that_of_the_definition(activation):
    logits = torch.randn(1, 4, 5, 5, dtype=torch.float64).float()
    p = (logits.softmax(1) if activation == "softmax" else logits.sigmoid()).double().numpy()
    if activation == "softmax":
        expected = -(p * np.log(p)).sum(1) / np.log(4)
    else:
        expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(1)
    np.testing.assert_allclose(voxel_entropy(logits, activation=activation), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [0.0, 100.0, 1e4])
def test_entropy_of_a_guess_is_one_and_of_certainty_zero(activation, size):
    logits = torch.tensor([size, -size, -size]).reshape(1, 3, 1).requires_grad_()
    entropy = voxel_entropy(logits, activation=activation)
    assert float(entropy) == pytest.approx(0.0 if size else 1.0, abs=1e-6)
    assert torch.autograd.grad(entropy.sum(), logits)[0].isfinite().all()


def test_gradient_of_entropy_is_the_analytic_one():
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    loss = window_loss(logits, torch.ones(3) / 3, objective="entropy", activation="softmax", hold=0.0)
    (found,) = torch.autograd.grad(loss, logits)
    log_p = logits.detach().log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
    expected = -log_p.exp() * (log_p + entropy) / (np.log(3) * 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_balanced_entropy_weighs_each_predicted_class_alike():
    logits = torch.zeros(1, 2, 100)
    logits[:, 0, :90], logits[:, 1, 90:] = 3.0, 1.0
    entropy = voxel_entropy(logits, activation="softmax")[0]
    loss = window_loss(logits, torch.ones(2) / 2, objective="balanced", activation="softmax", hold=0.0)
    assert float(loss) == pytest.approx(float(entropy[0] + entropy[-1]) / 2, rel=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_divergence_is_zero_only_for_equal_marginals(activation):
    p, q = torch.tensor([0.7, 0.3, 0.0]), torch.tensor([0.6, 0.4, 0.0])
    assert float(divergence(p, p, activation=activation)) == 0
    assert float(divergence(p, q, activation=activation)) > 0


@pytest.mark.parametrize("objective", ["entropy", "balanced", "confident"])
def test_overlapping_channels_adapt_too(objective):
    settings = ETTASettings(**{**vars(WILLING), "activation": "sigmoid", "objective": objective, "hold": 1.0})
    network = Tiny().eval()
    before = state(network)
    _, (outcome,) = predict(network, image(), settings)
    assert outcome.entropy_after < outcome.entropy_before
    assert_untouched(network, before)


# Windows


@pytest.mark.parametrize("size", [(8, 8, 8), (12, 9, 20), (5, 8, 17), (31, 16, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, (0.5, 0.6, 0.1)])
def test_windows_are_those_that_the_inferer_passes_to_the_network(size, overlap):
    x = torch.arange(np.prod(size), dtype=torch.float32).reshape(1, 1, *size) + 1
    inferer = SlidingWindowInferer(roi_size=(8, -1, 8), overlap=overlap, padding_mode="replicate")
    seen = []
    inferer(x, lambda window: seen.append(window.clone()) or window)
    grid = Grid.of(inferer, size)
    padded = grid.padded(x)
    ours = [padded[(..., *window)] for window in grid.windows(padded.shape[2:])]
    assert len(ours) == len(seen)
    assert all(map(torch.equal, ours, seen))


def test_reference_windows_cover_the_image_side_by_side():
    covered = torch.zeros(1, 1, 8, 16, 16)
    windows = reference_windows(Grid.of(INFERER, covered.shape[2:]), covered)
    for window in windows:
        covered[(..., *window)] += 1
    assert (covered == 1).all()


def test_reference_windows_leave_out_air_when_they_are_too_many():
    x = torch.zeros(1, 1, 32, 32, 32)
    x[..., 16:] = torch.rand(1, 1, 32, 32, 16)
    inferer = SlidingWindowInferer(roi_size=8, overlap=0.0)
    windows = reference_windows(Grid.of(inferer, x.shape[2:]), x)
    assert len(windows) == 12
    assert all(window[2].start >= 16 for window in windows)


def test_windows_with_foreground_are_drawn_first_one_of_each_stratum():
    entropy, foreground = [0.9, 0.1, 0.2, 0.3, 0.4, 0.8], [0, 0.1, 0.1, 0.1, 0.1, 0]
    for seed in range(20):
        drawn = choose(entropy, foreground, count=2, generator=np.random.default_rng(seed))
        assert drawn[0] in (4, 3)
        assert drawn[1] in (2, 1)
    assert len(set(choose(entropy, foreground, count=9, generator=np.random.default_rng(0)))) == 6


# Faces


def cases(names="ab", **more):
    return [{"case": name, "image": MetaTensor(image(ord(name))[0]), **more} for name in names]


def evaluator(network, items, *, handler, kind=SupervisedEvaluator, inferer=INFERER, **more):
    loader = DataLoader(Dataset(items), batch_size=1)
    device = torch.device("cpu")
    options = {"device": device, "val_data_loader": loader, "network": network, "inferer": inferer}
    return kind(val_handlers=[handler], **options, **more)


def predictions(engine):
    found = {}

    @engine.on(Events.ITERATION_COMPLETED)
    def keep():
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            found[item["case"]] = output["pred"].as_tensor()[None]

    engine.run()
    return found


def test_handler_adapts_each_case_and_writes_down_what_came_of_it(tmp_path):
    network = Tiny().eval()
    before = state(network)
    engine = evaluator(network, cases("ba"), handler=ETTAHandler(WILLING, output_dir=tmp_path))
    found = predictions(engine)
    for name in "ab":
        assert torch.equal(found[name], predict(network, image(ord(name)))[0])
    table = pd.read_csv(tmp_path / "etta.csv")
    assert list(table["case"]) == ["a", "b"]
    assert table["accepted"].all()
    assert (table["entropy_after"] < table["entropy_before"]).all()
    assert (table[["seconds", "peak_memory_mb"]] > 0).all(axis=None)
    metrics = engine.state.metrics
    assert metrics["etta_accepted"] == 1
    assert metrics["etta_entropy_before"] == pytest.approx(table["entropy_before"].mean(), abs=1e-6)
    assert engine.inferer is INFERER
    assert_untouched(network, before)


def test_handler_without_steps_changes_nothing(tmp_path):
    network = Tiny().eval()
    engine = evaluator(network, cases("a"), handler=ETTAHandler(ETTASettings(steps=0), output_dir=tmp_path))
    assert torch.equal(predictions(engine)["a"], plain(network, image(ord("a"))))
    assert pd.read_csv(tmp_path / "etta.csv")["reason"].tolist() == ["steps is 0"]


def test_handler_runs_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    engine = evaluator(Tiny().eval(), cases("a"), handler=ETTAHandler(WILLING))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: pytest.fail(f"asked of {device}"))
    engine.run()
    assert engine.state.metrics["etta_accepted"] == 1


def test_handler_puts_everything_back_when_a_case_ends_the_run():
    network = Tiny(fail_at=12).eval()
    before = state(network)
    engine = evaluator(network, cases("a"), handler=ETTAHandler(WILLING))
    with pytest.raises(RuntimeError, match="out of order"):
        engine.run()
    assert engine.inferer is INFERER
    assert_untouched(network, before)


def test_case_that_fails_has_no_row_and_the_next_is_as_if_alone(tmp_path):
    network = Tiny(fail_at=12).eval()
    handler = ETTAHandler(WILLING, output_dir=tmp_path)
    engine = evaluator(network, cases("ab"), handler=handler, kind=CaseEvaluator, output_dir=tmp_path)
    found = {}
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: found.update({o["image"].meta.get("n", 0): o for o in engine.state.output})
    )
    engine.run()
    assert engine.failures == {"a": "out of order"}
    assert pd.read_csv(tmp_path / "etta.csv")["case"].tolist() == ["b"]
    assert torch.equal(found[0]["pred"].as_tensor()[None], predict(Tiny().eval(), image(ord("b")))[0])


def test_table_of_an_earlier_run_is_replaced_and_other_ranks_do_not_write(tmp_path, monkeypatch):
    network = Tiny().eval()
    for names in ("a", "b"):
        evaluator(network, cases(names), handler=ETTAHandler(WILLING, output_dir=tmp_path)).run()
    assert pd.read_csv(tmp_path / "etta.csv")["case"].tolist() == ["b"]
    monkeypatch.setattr("scripts.etta.handler.is_rank0", lambda: False)
    evaluator(network, cases("a"), handler=ETTAHandler(WILLING, output_dir=tmp_path / "other")).run()
    assert not (tmp_path / "other").exists()


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps is -1: give 0 or more."),
        ({"lr": float("nan")}, "lr is nan: give 0 or more."),
        ({"windows_per_step": 0}, "windows_per_step is 0: give 1 or more."),
        ({"objective": "energy"}, "objective is 'energy': give one of entropy, balanced, confident."),
        ({"min_fall": -0.1}, "min_fall is -0.1: give 0 or more."),
        ({"keep": "first"}, "keep is 'first': give one of best, last."),
        ({"optimizer": "lion"}, "optimizer is 'lion': give one of adam, sgd."),
        ({"volume_band": (1.2, 1.5)}, "volume_band is [1.2, 1.5]: give two ratios, one below 1 and one above."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ETTASettings(**settings)


def test_network_without_affine_normalization_is_refused_before_the_first_case():
    network = nn.Sequential(nn.Conv3d(1, 6, 1), nn.InstanceNorm3d(6), nn.Conv3d(6, 3, 1)).eval()
    message = "Sequential has 1 normalization layers and none with weights to adapt"
    with pytest.raises(ValueError, match=message):
        predict(network, image())
    with pytest.raises(ValueError, match=message):
        evaluator(network, cases("a"), handler=ETTAHandler()).run()


@pytest.mark.parametrize(
    ("inferer", "network", "options", "message"),
    [
        (INFERER, lambda x: x, {}, "the network is function: pass the torch.nn.Module"),
        (INFERER, Tiny().eval(), {"condition": image()}, "the network takes more than an image"),
        (SlidingWindowInferer(8, with_coord=True), Tiny().eval(), {}, "the inferer has with_coord=True"),
    ],
)
def test_what_cannot_adapt_is_refused(inferer, network, options, message):
    with pytest.raises(ValueError, match=message):
        ETTAInferer(inferer)(image(), network, **options)


def test_affine_parameters_are_those_of_swin_unetr():
    from monai.networks.nets import SwinUNETR

    parameters = affine_parameters(SwinUNETR(in_channels=1, out_channels=14, feature_size=48))
    assert (len(parameters), sum(p.numel() for p in parameters)) == (40, 17280)
