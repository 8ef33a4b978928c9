"""Checkpoints of a training run: the best weights, and the state that a resumed run continues from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.common.ranks import is_rank0, unwrapped
from scripts.models.weight_files import read_file, save
from scripts.models.weights import value_problems

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """Save the network's weights whenever the evaluator's key metric reaches a new best.

    Args:
        network: the network in training, possibly wrapped for distributed training.
        path: file of the plain state dict, e.g. `models/model.pt`.
    """

    def __init__(self, network: torch.nn.Module, path: str | Path) -> None:
        self.network, self.path = network, Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, after its key metric."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if this validation is the best so far."""
        if engine.state.best_metric_epoch == engine.state.epoch:
            save(unwrapped(self.network).state_dict(), self.path)
        elif math.isnan(engine.state.metrics[engine.state.key_metric_name]):
            logger.warning(
                "%s is not written: %s of epoch %d is NaN; do the validation labels have foreground?",
                self.path,
                engine.state.key_metric_name,
                engine.state.epoch,
            )


class TrainingState:
    """State of a training run: network, optimizer, scheduler, gradient scaler, epoch and best metric.

    Args:
        network: the network in training, possibly wrapped for distributed training.
        optimizer: its optimizer.
        lr_scheduler: its learning-rate scheduler.
        evaluator: the validation engine, which holds the best metric.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Engine,
    ) -> None:
        self.modules = {"network": unwrapped(network), "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.evaluator = evaluator
        self.validation_due = False

    def state_dict(self, trainer: Engine, *, done: int | None = None) -> dict[str, Any]:
        """Collect the state.

        Args:
            trainer: its epoch is complete, unless `done` is given.
            done: steps of the running epoch whose gradients are in the weights.
        """
        length, epochs = trainer.state.epoch_length, trainer.state.epoch - (done is not None)
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state["scaler"] = trainer.scaler.state_dict() if trainer.scaler else {}
        state |= {"epoch": epochs, "epoch_length": length, "iteration": epochs * length + (done or 0)}
        state["best_metric"] = float(self.evaluator.state.best_metric)
        state["best_metric_epoch"] = self.evaluator.state.best_metric_epoch
        state["validation_due"] = self.validation_due
        return state

    def load_state_dict(self, trainer: Engine, state: dict[str, Any]) -> None:
        """Restore a collected state; the next step of `trainer` follows the saved one.

        Raises:
            InputError: it is not a training state, of another network or optimizer, holds values that no run has, or
                ends within an epoch of another length.
        """
        if isinstance(state, dict) and "iteration" in state and "epoch_length" not in state:
            raise InputError("of an earlier version, which drew other random numbers")
        own = self.state_dict(trainer)
        for name, module in self.modules.items():
            if not isinstance(state, dict) or name not in state:
                raise InputError(f"not a training state, it holds no {name}")
            try:
                module.load_state_dict(state[name])
            except (RuntimeError, ValueError, TypeError, LookupError) as error:  # of torch, for other ones
                lines = str(error).splitlines()  # the first of several names the class
                why = lines[min(1, len(lines) - 1)].strip()
                raise InputError(f"of another network or optimizer ({why})") from error
        own, rest = ({key: entry for key, entry in whole.items() if key != "network"} for whole in (own, state))
        if rest.get("scaler") == {}:  # amp was off
            own["scaler"] = {}
        problems = [*value_problems(self.modules["network"], state["network"]), _difference(own, rest, "it")]
        if problems := list(filter(None, problems)):
            raise InputError(f"damaged, or its training diverged: {problems[0]}")
        _go_to(trainer, state)
        if trainer.scaler and state["scaler"]:
            trainer.scaler.load_state_dict(state["scaler"])
        self.validation_due = state["validation_due"]
        self.evaluator.state.best_metric = state["best_metric"]
        self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]


def _go_to(trainer: Engine, state: Mapping[str, Any]) -> None:
    """Let the trainer start after the last step of a state.

    Raises:
        InputError: the state ends within an epoch, and this run's epochs have other steps.
    """
    done = state["iteration"] - state["epoch"] * state["epoch_length"]
    length = trainer.state.epoch_length
    if done:
        if not 0 < done < length or state["epoch_length"] != length:
            stop = f"{done} of {state['epoch_length']}"
            raise InputError(f"stopped after step {stop} of an epoch, and here an epoch has {length}")
        trainer.data_loader.sampler.skip(done * trainer.data_loader.batch_size)
    trainer.state.epoch, trainer.state.iteration = state["epoch"], state["epoch"] * length + done


def _difference(own: Any, given: Any, where: str) -> str:
    """Describe where a stored state is not of the form of this run's own, or not finite; "" if it is.

    Args:
        own: of this run; None and empty where any form will do.
        given: of the file.
        where: name of the entry.
    """
    if isinstance(given, Mapping) and (not own or isinstance(own, Mapping)):
        own = own or dict.fromkeys(given)
        if others := sorted(map(str, own.keys() ^ given.keys())):
            return f"{where} lacks or adds {others[0]}"
        return next(filter(None, (_difference(own[key], value, str(key)) for key, value in given.items())), "")
    if isinstance(own, list | tuple):
        if not isinstance(given, list | tuple) or len(own) != len(given):
            return f"{where} is {given!r:.100}"
        return next(filter(None, (_difference(*pair, where) for pair in zip(own, given, strict=True))), "")
    if isinstance(given, torch.Tensor):
        return "" if torch.isfinite(given).all() else f"{where} holds values that are not finite"
    kinds = {type(None): (type(None), bool, int, float), float: (float, int)}.get(type(own), (type(own),))
    if type(given) not in kinds or (isinstance(given, float) and not math.isfinite(given)):
        return f"{where} is {given!r:.100}"
    return ""


class LastCheckpoint:
    """Save the state of the run at the end of each epoch; list it after validation and schedule.

    Args:
        state: what to save.
        path: file to write, e.g. `models/training_state.ckpt`.
    """

    def __init__(self, state: TrainingState, path: str | Path) -> None:
        self.state, self.path = state, Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save."""
        save(self.state.state_dict(engine), self.path)


class Resume:
    """Continue a run from its last checkpoint, to the weights that it would have reached uninterrupted.

    Args:
        state: what to restore.
        path: file that `LastCheckpoint` wrote.
    """

    def __init__(self, state: TrainingState, path: str | Path) -> None:
        self.state, self.path = state, Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Restore.

        Raises:
            InputError: there is no checkpoint, it is corrupted or of another network.
        """
        if not self.path.is_file():
            raise InputError(f"{self.path}: no checkpoint to resume from: set resume to false.")
        state = read_file(self.path)
        try:
            self.state.load_state_dict(engine, state)
        except InputError as error:
            fix = "give the settings of the run that wrote it, or set resume to false."
            raise InputError(f"{self.path}: {error}; {fix}") from error
        logger.info("resumed from %s after epoch %d, step %d", self.path, engine.state.epoch, engine.state.iteration)
        if self.state.validation_due:  # its signal came in a validation
            self.state.evaluator.run(engine.state.epoch)
            if is_rank0():
                save(self.state.state_dict(engine), self.path)
