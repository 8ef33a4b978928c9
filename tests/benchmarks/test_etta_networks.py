from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR

from benchmarks.etta.networks import ARCHITECTURE
from tests.conftest import ROOT
from tools.demo import REDUCED_NETWORK


def test_network_of_the_benchmark_is_the_one_that_the_bundle_trains():
    """It was MONAI's own, without the order of patches that the bundle stores, and refused the trained weights."""
    parser = ConfigParser()
    configs = ROOT / "bundles" / "swin_bob_btcv" / "configs"
    parser.read_config(configs / "train.json")
    parser.read_meta(configs / "metadata.json")
    for key, value in REDUCED_NETWORK.items():
        parser[key] = value
    trained = parser.get_parsed_content("network_def").state_dict()
    measured = SwinUNETR(**ARCHITECTURE).state_dict()
    assert {key: value.shape for key, value in trained.items()} == {k: v.shape for k, v in measured.items()}
