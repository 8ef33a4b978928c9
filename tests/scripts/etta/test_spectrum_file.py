import json
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.etta.spectrum import TrainingSpectrum
from scripts.etta.spectrum_file import MAX_CASES, SpectrumFile, SpectrumWriter, read_spectrum


def image(seed):
    return torch.rand(2, 40, 36, 20, generator=torch.Generator().manual_seed(seed))


class Load:
    """Replace the number of a case by its image, and count."""

    def __init__(self):
        self.loaded = []

    def __call__(self, data):
        self.loaded.append(data["image"])
        return {**data, "image": image(data["image"])}


def file(tmp_path, *, cases=3):
    load = Load()
    return SpectrumFile([{"image": n} for n in range(cases)], [load], tmp_path / "models" / "spectrum.json"), load


def test_file_holds_the_spectrum_of_the_training_images(tmp_path):
    written, _ = file(tmp_path)
    written.write()
    found, expected = read_spectrum(written.path), TrainingSpectrum.of(image(n) for n in range(3))
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(found.sd, expected.sd, atol=1e-6)
    assert np.isnan(found.mean[:, 2]).all(), "an axis of 20 voxels"
    assert found.cases == 3
    beside = read_spectrum(written.path.with_name("model.pt"))
    np.testing.assert_array_equal(beside.mean, found.mean)
    assert "NaN" not in written.path.read_text()


def test_many_cases_are_sampled_evenly(tmp_path):
    written, load = file(tmp_path, cases=100)
    written.write()
    assert len(load.loaded) == MAX_CASES
    assert (load.loaded[0], load.loaded[-1]) == (0, 99)
    assert np.ptp(np.diff(load.loaded)) <= 1


def test_training_writes_it_at_its_end_and_once_if_it_goes_on_in_rounds(tmp_path):
    written, load = file(tmp_path)
    engine = Engine(lambda *_: None)
    SpectrumWriter(written).attach(engine)
    engine.run([0, 1], max_epochs=2)
    assert written.path.is_file()
    engine.run([0, 1], max_epochs=4)
    assert load.loaded == [0, 1, 2]


def test_training_that_is_stopped_does_not_write_it(tmp_path):
    written, _ = file(tmp_path)
    engine = Engine(lambda *_: engine.terminate())
    SpectrumWriter(written).attach(engine)
    engine.run([0, 1], max_epochs=2)
    assert not written.path.exists()


def test_missing_file_is_named_with_the_command_that_writes_it(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_spectrum(tmp_path / "spectrum.json") is None
    assert "spectrum.json is missing, so the input" in caplog.text
    assert "run write_spectrum --config_file configs/train.json" in caplog.text
    caplog.clear()
    assert read_spectrum(None) is None
    assert not caplog.text


GOOD = np.zeros((1, 3, 17)).tolist()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("not JSON", "no spectrum of training images"),
        ("[]", "no spectrum of training images"),
        (json.dumps({"cases": 2}), "no spectrum of training images"),
        (json.dumps({"cases": None, "log_power": {"mean": GOOD, "sd": GOOD}}), "no spectrum of training images"),
        (json.dumps({"cases": 2, "log_power": {"mean": "x", "sd": GOOD}}), "no spectrum of training images"),
        (json.dumps({"cases": 2, "log_power": {"mean": [[1], [1, 2]], "sd": GOOD}}), "no spectrum of training images"),
        (json.dumps({"cases": 2, "log_power": {"mean": [[[1]]], "sd": [[[1]]]}}), r"shape \(1, 1, 1\) and \(1, 1, 1\)"),
        (json.dumps({"cases": 2, "log_power": {"mean": GOOD, "sd": GOOD[0]}}), r"shape \(1, 3, 17\) and \(3, 17\)"),
    ],
)
def test_other_content_is_refused(tmp_path, content, why):
    path = tmp_path / "spectrum.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"spectrum\.json .*{why}.*write it anew"):
        read_spectrum(path)
