"""Packed bundles with tiny networks, for the real programs in environments of their own: `make test-clients`."""

import pytest

from tests.clients.bundles import packed_bundle, tiny_bundle
from tests.clients.programs import environment
from tests.conftest import TINY_OF, run_bundle

collect_ignore = ["drivers", "stand_ins"]
"""Programs of their own, which other Pythons run."""


def pytest_collection_modifyitems(items):
    """Mark these tests, which `make test` leaves out, and give them time."""
    for item in items:
        if "tests/clients/" in item.path.as_posix():
            item.add_marker("clients")
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def label_python():
    """Python of the environment with MONAI Label."""
    return environment("label")


@pytest.fixture(scope="session")
def deploy_python():
    """Python of the environment with the MONAI Deploy App SDK."""
    return environment("deploy")


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Folder with the bundles as they are packed, with random weights of tiny networks; not to be written into."""
    folder = tmp_path_factory.mktemp("packed")
    for seed, name in enumerate(("swin_bob_btcv", "swin_bob_brats", "swin_bob_pretrain")):
        tiny_bundle(name, folder, seed=seed)
    return folder


@pytest.fixture(scope="session")
def label_filter(packed, label_data, tmp_path_factory):
    """The packed label filter with thresholds fitted to phantoms."""
    bundle = packed_bundle("solf_filter", packed)
    folders = {"output_dir": str(tmp_path_factory.mktemp("fit")), "ckpt_dir": str(bundle / "models")}
    settings = {"qc": False, **TINY_OF["solf_filter"], **folders}
    run_bundle("solf_filter", ["train.json"], dataset_dir=str(label_data), **settings)
    return bundle


@pytest.fixture(scope="session")
def torso(torso_data):
    """A CT volume."""
    return torso_data / "imagesTs" / "torso_003.nii.gz"


@pytest.fixture(scope="session")
def brain(brain_data):
    """Folder of a case of four sequences."""
    return brain_data / "BraTS-GLI-00001-000"


@pytest.fixture(scope="session")
def dixon(dixon_data):
    """A volume of four contrasts."""
    return sorted(dixon_data.glob("images*/*.nii.gz"))[0]
