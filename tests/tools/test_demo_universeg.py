import json

import pytest
from monai.bundle import ConfigParser

from tools.demo_universeg import BUNDLE, REDUCED, STUDY, TRAINING


@pytest.mark.parametrize(("configs", "own"), [(["train.json"], TRAINING), (["inference.json", "evaluate.json"], STUDY)])
def test_settings_of_the_demo_override_what_the_configs_have(configs, own):
    known = ConfigParser()
    for name in configs:
        known.update(json.loads((BUNDLE / "configs" / name).read_text()))
    assert [key for key in {**REDUCED, **own} if key not in known] == []
