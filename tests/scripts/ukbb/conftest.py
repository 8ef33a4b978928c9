import copy

import pytest

from tools.ukbb_archives import flat, whole_body, write_archive


@pytest.fixture(scope="session")
def _stations():
    return whole_body("1000001")


@pytest.fixture
def stations(_stations):
    """Slices of six small stations from the neck, each by the last part of its series' names; free to be changed."""
    return copy.deepcopy(_stations)


@pytest.fixture
def archive(tmp_path):
    """Writes stations as an archive."""

    def write(stations, name="1000001_20201_2_0.zip", **options):
        return write_archive(tmp_path / "in" / name, flat(stations), **options)

    return write


@pytest.fixture(scope="session")
def sound(_stations, tmp_path_factory):
    """An archive without a fault, not to be changed."""
    return write_archive(tmp_path_factory.mktemp("sound") / "1000001_20201_2_0.zip", flat(_stations))
