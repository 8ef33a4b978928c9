"""Entropy test-time adaptation as an inferer, for programs that call an inferer without an evaluator."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer

from scripts.common.errors import InputError
from scripts.etta.core import Outcome, adapted
from scripts.etta.settings import ETTASettings
from scripts.inference.window_layout import WindowLayout


class ETTAInferer(Inferer):
    """Adapt the network to each image before the wrapped inferer predicts it.

    Args:
        inferer: a sliding-window inferer of MONAI, to whose windows the network adapts; for any other inferer the
            whole image is one window.
        settings: see `ETTASettings`; None for its defaults.

    Attributes:
        outcomes: of the images of the last call.

    >>> from monai.inferers import SlidingWindowInferer
    >>> network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.GroupNorm(2, 4), torch.nn.Conv3d(4, 2, 1))
    >>> inferer = ETTAInferer(SlidingWindowInferer(roi_size=16), ETTASettings(steps=1))
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

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict each image of a batch by the network adapted to it alone.

        Args:
            inputs: images.
            network: a module with affine normalization layers, in the mode that it predicts in.
            args: passed to the wrapped inferer; only allowed with 0 steps.
            kwargs: passed to the wrapped inferer.

        Shape:
            inputs: (B, C, ...); the result is what the wrapped inferer returns.

        Raises:
            InputError: the network is not a module, has nothing to adapt or takes more than an image.
        """
        self.outcomes = []
        if self.settings.steps == 0:
            self.outcomes = [Outcome(accepted=False, reason="steps is 0")] * len(inputs)
            return self.inferer(inputs, network, *args, **kwargs)
        if not isinstance(network, torch.nn.Module):
            raise InputError(f"network is a {type(network).__name__}: pass a torch.nn.Module.")
        if args or "condition" in kwargs:
            raise InputError("the network takes more than an image: leave test-time adaptation out.")
        if getattr(self.inferer, "with_coord", False):
            raise InputError("the inferer has with_coord=True: set it to False, or leave test-time adaptation out.")
        predictions = [self._predict(image, network, **kwargs) for image in inputs.split(1)]
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def _predict(self, image: torch.Tensor, network: torch.nn.Module, **kwargs: Any) -> torch.Tensor:
        """Predict one image (1, C, ...)."""
        layout = WindowLayout.of(self.inferer, image.shape[2:])
        with adapted(network, image, layout, self.settings) as outcome:
            self.outcomes.append(outcome)
            return self.inferer(image, network, **kwargs)
