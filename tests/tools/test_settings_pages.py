import pytest

from scripts.common.settings import declarations
from tests.conftest import ROOT
from tools.settings_pages import settings_page

BUNDLES = sorted(path.parent for path in ROOT.glob("bundles/*/configs"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_page_is_that_of_the_configs(bundle):
    assert (bundle / "docs" / "settings.md").read_text() == settings_page(bundle), "run `make format`"


def test_defaults_of_overlays_are_shown_where_they_differ():
    page = settings_page(ROOT / "bundles" / "swin_bob_btcv").partition("## With `evaluate.json`")[2]
    assert "| `output_dir` | eval |" in page
    assert "| `spacing_mm` |" not in page
    assert "| `surface_tolerance_mm` | 2.0 | a number from 0 to 100 |" in page


def test_every_declared_setting_is_on_a_page():
    pages = "".join(map(settings_page, BUNDLES))
    tuned = {
        "network_def#depths",
        "network_def#window_size",
        "network_def#spatial_dims",
    }  # arguments that no config sets
    assert [name for name in declarations() if f"| `{name}` |" not in pages and name not in tuned] == []
