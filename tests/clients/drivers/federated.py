"""Two rounds of a federated client of MONAI: `federated.py BUNDLE DATA FOLDER METRIC [CONFIG ...]`; prints its rounds as JSON."""

import json
import sys

import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject


def main():
    bundle, data, folder, metric, *evaluation = sys.argv[1:]
    settings = {"dataset_dir": data, "ckpt_dir": f"{folder}/models", "output_dir": f"{folder}/runs"}
    options = {"train_kwargs": dict(settings), "eval_kwargs": dict(settings)}
    client = MonaiAlgo(bundle, local_epochs=1, config_evaluate_filename=evaluation or "default", **options)
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site 1", ExtraItems.APP_ROOT: folder})
    weights = torch.load(f"{bundle}/models/model.pt", weights_only=True)
    rounds = []
    for _ in range(2):
        metrics = client.evaluate(ExchangeObject(weights=weights)).metrics
        client.train(ExchangeObject(weights=weights))
        update = client.get_weights()
        assert update.weight_type == WeightType.WEIGHT_DIFF
        assert update.weights.keys() == weights.keys()
        moved = sum(float(torch.as_tensor(value).abs().sum()) for value in update.weights.values())
        weights = {key: value + torch.as_tensor(update.weights[key]).to(value.dtype) for key, value in weights.items()}
        rounds.append({"score": metrics[metric], "moved": moved, "epoch": client.trainer.state.epoch})
    client.finalize()
    torch.save(weights, f"{folder}/aggregated.pt")
    print("ROUNDS", json.dumps(rounds))


if __name__ == "__main__":
    main()
