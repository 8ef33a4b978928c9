import re
import types

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.models.swin_unetr import CurrentPatchMerging, LegacyPatchMerging
from scripts.training.checkpoints import BestCheckpoint, LastCheckpoint, Resume, TrainingState


def parts(scaler=None, network=None):
    network = network or torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    evaluator = types.SimpleNamespace(state=types.SimpleNamespace(best_metric=0.5, best_metric_epoch=1))
    trainer = Engine(lambda engine, batch: None)
    trainer.scaler, trainer.state.epoch_length = scaler, 4
    return network, TrainingState(network, optimizer, scheduler, evaluator), trainer


def test_state_is_restored_with_scaler_epoch_and_best_metric(tmp_path):
    network, state, trainer = parts(torch.amp.GradScaler("cpu", init_scale=128.0))
    trainer.state.epoch = 3
    LastCheckpoint(state, tmp_path / "deep" / "training_state.ckpt")(trainer)
    other_network, other, resumed = parts(torch.amp.GradScaler("cpu"))
    other.evaluator.state.best_metric = -1
    Resume(other, tmp_path / "deep" / "training_state.ckpt")(resumed)
    assert torch.equal(other_network.weight, network.weight)
    assert (resumed.state.epoch, resumed.state.iteration) == (3, 12)
    assert (other.evaluator.state.best_metric, other.evaluator.state.best_metric_epoch) == (0.5, 1)
    assert resumed.scaler.get_scale() == 128.0


@pytest.mark.parametrize("content", [b"corrupted", b"PK\x03\x04 half a zip"])
def test_corrupted_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "training_state.ckpt").write_bytes(content)
    _, state, trainer = parts()
    with pytest.raises(InputError, match=r"training_state\.ckpt: not a PyTorch checkpoint, or corrupted"):
        Resume(state, tmp_path / "training_state.ckpt")(trainer)


def test_missing_checkpoint_is_refused(tmp_path):
    _, state, trainer = parts()
    with pytest.raises(InputError, match=r"training_state\.ckpt: no checkpoint to resume from: set resume to false\.$"):
        Resume(state, tmp_path / "training_state.ckpt")(trainer)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            {"network": {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}},
            "of another network or optimizer (size mismatch for weight: copying",
        ),
        ({"weight": torch.zeros(2, 2)}, "not a training state, it holds no network; give the settings"),
        ([torch.zeros(2)], "not a training state, it holds no network; give the settings"),
    ],
    ids=["another shape", "weights alone", "a list"],
)
def test_checkpoint_of_another_run_is_refused_with_the_reason(tmp_path, content, why):
    torch.save(content, tmp_path / "training_state.ckpt")
    _, state, trainer = parts()
    message = f"training_state.ckpt: {why}"
    with pytest.raises(InputError, match=re.escape(message)):
        Resume(state, tmp_path / "training_state.ckpt")(trainer)


def entry(*keys, value):
    """Return a function that sets an entry of a nested state."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (entry("network", "weight", value=torch.full((2, 2), torch.nan)), "weight holds 4 values that are not finite"),
        (entry("network", "weight", value=torch.zeros(2, 2, dtype=torch.int)), "weight is of torch.int32, the network"),
        (entry("optimizer", "state", 0, "exp_avg", value=torch.full((2, 2), torch.inf)), "exp_avg holds values that"),
        (entry("optimizer", "param_groups", 0, "lr", value=torch.nan), "lr is nan"),
        (entry("optimizer", "param_groups", 0, "lr", value="0.1"), "lr is '0.1'"),
        (lambda state: state["optimizer"]["param_groups"][0].pop("lr"), "param_groups lacks or adds lr"),
        (entry("lr_scheduler", "step", value=5), "lr_scheduler lacks or adds step"),
        (entry("lr_scheduler", "last_epoch", value="x"), "last_epoch is 'x'"),
        (entry("lr_scheduler", "base_lrs", value=[0.1, 0.1]), "base_lrs is [0.1, 0.1]"),
        (entry("scaler", "scale", value=torch.nan), "scale is nan"),
        (entry("scaler", value=[1]), "scaler is [1]"),
        (lambda state: state.pop("scaler"), "it lacks or adds scaler"),
        (lambda state: state.pop("epoch"), "it lacks or adds epoch"),
        (entry("validation_due", value=None), "validation_due is None"),
        (entry("epoch", value=2.5), "epoch is 2.5"),
        (entry("epoch", value="3"), "epoch is '3'"),
        (entry("best_metric", value=torch.nan), "best_metric is nan"),
        (entry("best_metric", value=None), "best_metric is None"),
    ],
)
def test_state_with_values_that_no_run_has_is_refused(tmp_path, change, why):
    network, state, trainer = parts(torch.amp.GradScaler("cpu"))
    network(torch.zeros(1, 2)).sum().backward()
    state.modules["optimizer"].step()
    content = state.state_dict(trainer)
    change(content)
    torch.save(content, tmp_path / "training_state.ckpt")
    _, other, resumed = parts(torch.amp.GradScaler("cpu"))
    with pytest.raises(InputError, match=re.escape(f"training_state.ckpt: damaged, or its training diverged: {why}")):
        Resume(other, tmp_path / "training_state.ckpt")(resumed)


@pytest.mark.parametrize(
    "content",
    [
        {"network": None},
        {"network": [1]},
        {"network": torch.nn.Linear(2, 2).state_dict(), "optimizer": []},
        {"network": torch.nn.Linear(2, 2).state_dict(), "optimizer": {"param_groups": 3, "state": {}}},
    ],
)
def test_state_of_another_form_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "training_state.ckpt")
    _, state, trainer = parts()
    with pytest.raises(
        InputError, match=r"training_state\.ckpt: of another network or optimizer \(.+\); give the settings"
    ):
        Resume(state, tmp_path / "training_state.ckpt")(trainer)


@pytest.mark.parametrize(("saved_with", "resumed_with"), [(True, False), (False, True)])
def test_run_resumes_with_amp_switched(tmp_path, saved_with, resumed_with):
    scalers = {True: torch.amp.GradScaler("cpu"), False: None}
    _, state, trainer = parts(scalers[saved_with])
    trainer.state.epoch = 2
    LastCheckpoint(state, tmp_path / "training_state.ckpt")(trainer)
    _, other, resumed = parts(scalers[resumed_with])
    Resume(other, tmp_path / "training_state.ckpt")(resumed)
    assert resumed.state.epoch == 2


def test_bug_while_resuming_is_not_shown_as_an_error_of_the_checkpoint(tmp_path, monkeypatch):
    """Only what torch refuses is translated; anything else keeps its type and traceback."""
    _, state, trainer = parts()
    LastCheckpoint(state, tmp_path / "training_state.ckpt")(trainer)

    def buggy(self, *_):
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(TrainingState, "load_state_dict", buggy)
    with pytest.raises(ValueError, match="not enough values") as caught:
        Resume(state, tmp_path / "training_state.ckpt")(trainer)
    assert not isinstance(caught.value, InputError)


def test_checkpoint_of_the_other_patch_merging_is_refused(tmp_path):
    _, state, trainer = parts(network=CurrentPatchMerging(4))
    LastCheckpoint(state, tmp_path / "training_state.ckpt")(trainer)
    _, other, resumed = parts(network=LegacyPatchMerging(4))
    with pytest.raises(InputError, match=r"training_state\.ckpt: of another network or optimizer"):
        Resume(other, tmp_path / "training_state.ckpt")(resumed)


def test_only_a_new_best_is_saved(tmp_path):
    network, _, evaluator = parts()
    evaluator.state.epoch, evaluator.state.best_metric_epoch = 4, 2
    evaluator.state.key_metric_name, evaluator.state.metrics = "mean_dice", {"mean_dice": 0.5}
    BestCheckpoint(network, tmp_path / "model.pt")(evaluator)
    assert not list(tmp_path.iterdir())
    evaluator.state.best_metric_epoch = 4
    BestCheckpoint(network, tmp_path / "model.pt")(evaluator)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], network.weight)


def test_metric_that_is_not_a_number_is_named(tmp_path, caplog):
    """No validation label has foreground, so no weights would ever be written."""
    network, _, evaluator = parts()
    evaluator.state.epoch, evaluator.state.best_metric_epoch = 4, -1
    evaluator.state.key_metric_name, evaluator.state.metrics = "mean_dice", {"mean_dice": torch.nan}
    BestCheckpoint(network, tmp_path / "model.pt")(evaluator)
    (record,) = caplog.records
    assert record.message.endswith(
        "model.pt is not written: mean_dice of epoch 4 is NaN; do the validation labels have foreground?"
    )


def test_state_of_an_epoch_of_another_length_is_refused_within_it_and_accepted_at_its_end(tmp_path):
    _, state, trainer = parts()
    trainer.state.epoch = 3
    for done, accepted in ((1, False), (None, True)):
        torch.save(state.state_dict(trainer, done=done), tmp_path / "training_state.ckpt")
        _, other, resumed = parts()
        resumed.state.epoch_length = 5
        if accepted:
            Resume(other, tmp_path / "training_state.ckpt")(resumed)
            assert (resumed.state.epoch, resumed.state.iteration) == (3, 15)
        else:
            with pytest.raises(
                InputError, match=r"stopped after step 1 of 4 of an epoch, and here an epoch has 5; give"
            ):
                Resume(other, tmp_path / "training_state.ckpt")(resumed)


def test_state_of_an_earlier_version_is_refused(tmp_path):
    _, state, trainer = parts()
    content = state.state_dict(trainer)
    del content["epoch_length"], content["validation_due"]
    torch.save(content, tmp_path / "training_state.ckpt")
    with pytest.raises(InputError, match=r"training_state\.ckpt: of an earlier version, which drew other random"):
        Resume(state, tmp_path / "training_state.ckpt")(trainer)
