import pytest


@pytest.fixture
def small_pictures(monkeypatch):
    """Draw PNGs at a third of their resolution, which is enough for most tests."""
    monkeypatch.setattr("scripts.preview.png.DPI", 40)
