import re

import pytest

from scripts.common.errors import InputError
from scripts.etta.settings import ETTASettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps is -1: give 0 or more."),
        ({"lr": float("nan")}, "lr is nan: give 0 or more."),
        ({"windows_per_step": 0}, "windows_per_step is 0: give 1 or more."),
        ({"windows_per_step": "none"}, "windows_per_step is 'none': give 1 or more."),
        ({"guard": "maybe"}, "guard is 'maybe': give true or false."),
        (
            {"objective": "entropy"},
            "objective is 'entropy': give a function of logits, such as scripts.etta.objectives.mean_entropy.",
        ),
        ({"min_entropy_drop": -0.1}, "min_entropy_drop is -0.1: give 0 or more."),
        ({"adapt": "image"}, "adapt is 'image': give one of input, weights, both."),
        ({"keep": "first"}, "keep is 'first': give one of best, last."),
        ({"optimizer": "lion"}, "optimizer is 'lion': give one of adam, sgd."),
        ({"activation": "relu"}, "activation is 'relu': give one of softmax, sigmoid."),
        ({"batch_statistics": "none"}, "batch_statistics is 'none': give one of trained, case."),
        ({"volume_band": (1.2, 1.5)}, "volume_band is [1.2, 1.5]: give two ratios, one below 1 and one above."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        ETTASettings(**settings)


def test_guard_is_switched_off_from_the_command_line():
    """`--etta#guard false` arrives as text, which would be true."""
    assert ETTASettings(guard="false").guard is False


def test_all_windows_per_step_are_none():
    assert ETTASettings(windows_per_step=None).windows_per_step is None


def test_smallest_drop_depends_on_what_adapts_unless_it_is_set():
    assert [ETTASettings().least_drop(kind) for kind in ("input", "weights")] == [0.1, 0.03]
    assert [ETTASettings(min_entropy_drop=0.2).least_drop(kind) for kind in ("input", "weights")] == [0.2, 0.2]
