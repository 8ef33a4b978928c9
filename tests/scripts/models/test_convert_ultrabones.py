import pytest
import torch

from scripts.models import convert_ultrabones
from scripts.models.convert_ultrabones import main
from scripts.models.ultrabones import UltraBones
from scripts.models.weights import load_weights
from tests.scripts.models.tiny_networks import saved


class Pickled(UltraBones):
    """Stands for the class of the published file, which nobody has here."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The published network is large; its sizes are tested with the network."""
    small = {"blocks": [1, 1, 1, 1], "features": [2, 2, 2, 2], "pyramid_channels": 4, "segmentation_channels": 32}
    monkeypatch.setattr(convert_ultrabones, "UltraBones", lambda: UltraBones(**small))
    return small


def test_whole_module_becomes_weights_that_load_strictly(tmp_path, small, caplog):
    torch.manual_seed(0)
    module = Pickled(**small).train()
    source = saved(tmp_path / "epoch_101.pth", module)
    target = tmp_path / "models" / "model.pt"
    assert main([str(source), str(target)]) == 0
    other = UltraBones(**small)
    load_weights(other, target)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in module.state_dict().items())
    content = torch.load(target, weights_only=True)
    assert list(content) == list(module.state_dict())


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        (torch.nn.Linear(2, 1), "model.pt", "weights of another network"),
        (None, "model.pth", "model.pth: not a name for weights"),
        (None, "epoch_101.pt", "is the source itself"),
    ],
)
def test_bad_input_has_one_clear_error_and_writes_nothing(tmp_path, small, caplog, content, target, message):
    source = saved(tmp_path / "epoch_101.pt", content or Pickled(**small))
    assert main([str(source), str(tmp_path / target)]) == 2
    assert message in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_101.pt"]
