"""Cases with a prediction and a label, and an evaluator that runs handlers on them."""

import numpy as np
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def oblique(spacing_mm=(2.0, 1.0, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag([-spacing_mm[0], spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = [10.0, -20.0, 30.0]
    return affine


def cube(start, value=1, shape=(16, 14, 12), side=5):
    volume = torch.zeros((1, *shape))
    volume[(0, *(slice(s, s + side) for s in start))] = value
    return volume


def item(pred, label, *, case=None, file="/data/image.nii.gz", affine=None):
    affine = torch.as_tensor(oblique() if affine is None else affine)
    entry = {
        "image": MetaTensor(pred.clone(), affine=affine, meta={"filename_or_obj": file}),
        "label": MetaTensor(label, affine=affine, meta={"filename_or_obj": file}),
        "pred": MetaTensor(pred, affine=affine),
    }
    return entry | ({"case": case} if case else {})


class Echo(torch.nn.Module):
    """A network that returns its input."""

    def forward(self, x):
        return x.clone()


class FailedCase:
    """What a failed case leaves to the handlers after it: nothing."""

    def attach(self, engine):
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine):
        engine.state.batch, engine.state.output = [], []


def evaluate(items, handlers, *, max_epochs=1, edit=None):
    """Run a real MONAI evaluator whose prediction is its image."""
    items = [{k: v for k, v in entry.items() if k != "pred"} for entry in items]
    engine = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=1, num_workers=0),
        network=Echo(),
        postprocessing=edit,
    )
    for handler in handlers:
        handler.attach(engine)
    engine.state.max_epochs = max_epochs
    engine.run()
    return engine
