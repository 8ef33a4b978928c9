"""Entropy test-time adaptation to one case: copy the network, measure, adapt, measure again, decide, restore.

The graph of a window is freed before the next, and only statistics of predictions are kept, so memory does not grow
with the image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from scripts.common.errors import InputError
from scripts.common.ranks import unwrapped
from scripts.etta.guard import Crop, PredictionStats, logits_of, measure, verdict
from scripts.etta.outcome import ACCEPTED, Outcome
from scripts.etta.settings import ETTASettings
from scripts.etta.windows import choose, crops, measured_windows
from scripts.inference.window_layout import WindowLayout

NORMALIZATION = (torch.nn.LayerNorm, torch.nn.GroupNorm, _BatchNorm, _InstanceNorm)
NOT_FINITE = "gradient not finite"
LOSS_SCALE = 2.0**16  # half precision would round the gradients of a mean over a million voxels to zero


class Snapshot:
    """A copy of all that adaptation changes in a network, to restore it bit for bit.

    Args:
        network: without its wrapper for distributed training.
        parameters: those that adapt.
    """

    def __init__(self, network: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> None:
        batch_norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        tensors = [*parameters, *(buffer for module in batch_norms for buffer in module.buffers(recurse=False))]
        self.values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
        self.modes = [(module, module.training) for module in network.modules()]
        self.momenta = [(module, module.momentum) for module in batch_norms]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore values, gradients, flags and modes."""
        for tensor, value in self.values:
            tensor.copy_(value)
        for parameter, requires_grad, grad in self.flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training in self.modes:
            module.training = training
        for module, momentum in self.momenta:
            module.momentum = momentum
        torch.clear_autocast_cache()


def affine_parameters(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """List the weights and biases of the normalization layers.

    Args:
        network: any network, also wrapped for distributed training.

    Returns:
        The parameters of LayerNorm, InstanceNorm, GroupNorm and BatchNorm layers, each once.

    Raises:
        InputError: there is none.
    """
    layers = [module for module in unwrapped(network).modules() if isinstance(module, NORMALIZATION)]
    found = {id(p): p for layer in layers for p in layer.parameters(recurse=False)}
    if not found:
        raise InputError(
            f"{type(unwrapped(network)).__name__} has {len(layers)} normalization layers and none with weights to "
            "adapt: set adapt to 'input', or build the network with affine=True."
        )
    return list(found.values())


@contextmanager
def adapted(
    network: torch.nn.Module, image: torch.Tensor, layout: WindowLayout, settings: ETTASettings
) -> Iterator[Outcome]:
    """Adapt a network to an image within a `with` block.

    Args:
        network: in the mode that it predicts in. It is adapted within the block if the guard accepts that, and
            restored bit for bit after it, whatever was raised.
        image: one case.
        layout: how the inferer divides it into windows.
        settings: see `ETTASettings`.

    Shape:
        image: (1, C, ...).

    Raises:
        InputError: the network has nothing to adapt, or its output is not a tensor of logits.
    """
    module = unwrapped(network)
    parameters = affine_parameters(module)
    snapshot = Snapshot(module, parameters)
    try:
        outcome = _adapt(module, parameters, image, layout, settings)
        if not outcome.accepted:
            snapshot.restore()
        yield outcome
    finally:
        snapshot.restore()


@torch.enable_grad()  # the evaluator runs us under no_grad
@torch.inference_mode(False)
def _adapt(
    network: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    image: torch.Tensor,
    layout: WindowLayout,
    settings: ETTASettings,
) -> Outcome:
    """Adapt, and compare the predictions before and after; see `adapted`."""
    start = time.perf_counter()
    image = layout.padded(convert_to_tensor(image))
    windows = measured_windows(layout, image, every=settings.windows_per_step is None)
    references = crops(image, windows, parameters[0].device)
    before = measure(network, references, settings)
    network.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    torch.clear_autocast_cache()
    if settings.batch_statistics == "case":
        _take_statistics(network, references)
    after = _descend(network, parameters, references, before, settings)
    reason = verdict(before, after, settings) if after else NOT_FINITE
    after = after or before
    return Outcome(
        accepted=reason != NOT_FINITE and (not reason or not settings.guard),
        reason=reason or ACCEPTED,
        **before.entropies("before"),
        **after.entropies("after"),
        seconds=time.perf_counter() - start,
        windows=len(windows),
    )


@torch.no_grad()
def _take_statistics(network: torch.nn.Module, crops: Sequence[Crop]) -> None:
    """Set the statistics of BatchNorm layers to their means over the windows of the case."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    for crop in crops if layers else ():
        network(crop())
    for layer in layers:
        layer.eval()


def _descend(
    network: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    crops: Sequence[Crop],
    before: PredictionStats,
    settings: ETTASettings,
) -> PredictionStats | None:
    """Take all steps and go back to the best; return its statistics, or None if a gradient is not finite."""
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.optimizer]
    optimizer = kind(parameters, lr=settings.lr)
    generator = np.random.default_rng(settings.seed)
    candidates: list[tuple[PredictionStats, list[torch.Tensor]]] = []
    for step in range(1, settings.steps + 1):
        chosen = range(len(crops))
        if settings.windows_per_step is not None:
            chosen = choose(before.entropy, before.foreground, count=settings.windows_per_step, generator=generator)
        if not _set_gradients(network, parameters, crops, chosen, settings):
            return None
        optimizer.step()
        torch.clear_autocast_cache()
        if settings.keep == "best" or step == settings.steps:
            values = [parameter.detach().clone() for parameter in parameters]
            candidates.append((measure(network, crops, settings), values))
    after, values = min(candidates, key=lambda item: item[0].foreground_entropy)
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    torch.clear_autocast_cache()
    return after


def _set_gradients(
    network: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    crops: Sequence[Crop],
    chosen: Sequence[int],
    settings: ETTASettings,
) -> bool:
    """Set the gradients to their mean over the chosen windows; return whether all are finite."""
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for index in chosen:
        _accumulate(gradients, network, parameters, crops[index](), settings)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient / (LOSS_SCALE * len(chosen))
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _accumulate(
    gradients: list[torch.Tensor],
    network: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    crop: torch.Tensor,
    settings: ETTASettings,
) -> None:
    """Add the scaled gradients of one window, whose graph is freed here."""
    loss = settings.objective(logits_of(network, crop), activation=settings.activation)
    # Not backward(): that would call the hooks of distributed training.
    found = torch.autograd.grad(loss * LOSS_SCALE, parameters, allow_unused=True)
    for total, gradient in zip(gradients, found, strict=True):
        if gradient is not None:
            total += gradient
