"""Entropy test-time adaptation as an inferer, for programs that call an inferer without an evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

from scripts.common.errors import InputError
from scripts.etta.core import adapted
from scripts.etta.input_search import choose_input
from scripts.etta.outcome import Outcome, joined
from scripts.etta.settings import ETTASettings
from scripts.inference.window_layout import WindowLayout


class ETTAInferer(Inferer):
    """Adapt to each image, by changing it or the weights of the network, before the wrapped inferer predicts it.

    Args:
        inferer: a sliding-window inferer of MONAI, to whose windows the network adapts; for any other inferer the
            whole image is one window.
        settings: see `ETTASettings`; None for its defaults.

    Attributes:
        outcomes: of the images of the last call.

    >>> from monai.inferers import SlidingWindowInferer
    >>> network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.GroupNorm(2, 4), torch.nn.Conv3d(4, 2, 1))
    >>> inferer = ETTAInferer(SlidingWindowInferer(roi_size=16), ETTASettings(adapt="weights", steps=1))
    >>> with torch.no_grad():
    ...     logits = inferer(torch.rand(1, 1, 16, 16, 16), network.eval())
    >>> logits.shape, inferer.outcomes[0].windows
    (torch.Size([1, 2, 16, 16, 16]), 1)
    """

    def __init__(self, inferer: Inferer, settings: ETTASettings | None = None) -> None:
        super().__init__()
        self.inferer = inferer
        self.settings = settings or ETTASettings()
        self.outcomes: list[Outcome] = []

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict each image of a batch, adapted to it alone.

        Args:
            inputs: images.
            network: in the mode that it predicts in. To change the input, any function of windows that returns
                logits; to adapt weights, a module with affine normalization layers.
            args: passed to the wrapped inferer; only allowed if nothing adapts.
            kwargs: passed to the wrapped inferer.

        Shape:
            inputs: (B, C, ...); the result is what the wrapped inferer returns.

        Raises:
            InputError: weights adapt and the network is not a module or has none to adapt; or it takes more than an
                image.
        """
        self.outcomes = []
        if self.settings.adapt == "weights" and self.settings.steps == 0:
            self.outcomes = [Outcome(accepted=False, reason="steps is 0")] * len(inputs)
            return self.inferer(inputs, network, *args, **kwargs)
        if self.settings.adapts_weights and not isinstance(network, torch.nn.Module):
            raise InputError(f"network is a {type(network).__name__}: pass a torch.nn.Module, or adapt the input.")
        if args or "condition" in kwargs:
            raise InputError("the network takes more than an image: leave test-time adaptation out.")
        if getattr(self.inferer, "with_coord", False):
            raise InputError("the inferer has with_coord=True: set it to False, or leave test-time adaptation out.")
        predictions = [self._predict(image, network, **kwargs) for image in inputs.split(1)]
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def _predict(self, image: torch.Tensor, network: Callable[..., Any], **kwargs: Any) -> torch.Tensor:
        """Predict one image (1, C, ...)."""
        layout, first = WindowLayout.of(self.inferer, image.shape[2:]), None
        if self.settings.adapt != "weights":
            image, first = choose_input(network, image, layout, self.settings)
        if not self.settings.adapts_weights:
            self.outcomes.append(first)
            return self.inferer(image, network, **kwargs)
        with adapted(network, image, layout, self.settings) as outcome:
            self.outcomes.append(joined(first, outcome) if first else outcome)
            return self.inferer(image, network, **kwargs)
