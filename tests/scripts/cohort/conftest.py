import pytest

from tests.scripts.cohort.counted_maps import write_maps


@pytest.fixture
def cases(tmp_path):
    return write_maps(tmp_path, 12)
