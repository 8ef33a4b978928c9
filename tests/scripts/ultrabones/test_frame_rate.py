import re

import torch
from ignite.engine import Engine

from scripts.ultrabones.frame_rate import FrameRate
from scripts.ultrabones.inferer import FrameInferer


def test_frames_of_all_cases_are_counted_anew_in_each_run(caplog):
    caplog.set_level("INFO")
    inferer = FrameInferer(batch_size=2)
    engine = Engine(lambda _, image: inferer(image, torch.nn.Identity()))
    FrameRate(inferer).attach(engine)
    for _ in range(2):
        engine.run([torch.zeros(1, 1, 8, 8, 3), torch.zeros(1, 1, 8, 8, 1)], max_epochs=1)
    assert [record.message.split(":")[0] for record in caplog.records if "per second" in record.message] == [
        "4 frames"
    ] * 2
    network, whole = map(float, re.findall(r"([\d.]+) (?:per second|with)", caplog.text)[:2])
    assert network >= whole > 0
