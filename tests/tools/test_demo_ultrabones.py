import json

from monai.bundle import ConfigParser

from tools.demo_ultrabones import BUNDLE, REDUCED, TRAINING


def test_settings_of_the_demo_override_what_the_configs_have():
    known = ConfigParser(json.loads((BUNDLE / "configs" / "train.json").read_text()))
    assert [key for key in {**REDUCED, **TRAINING} if key not in known] == []
