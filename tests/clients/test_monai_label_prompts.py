"""The real MONAI Label server with SegVol: clicks, as 3D Slicer sends them."""

import json
import shutil

import numpy as np
import pytest

from tests.clients.bundles import own_run, tiny_bundle
from tests.clients.label_server import LabelServer

DEEPGROW = "deepgrow_segvol"
"""MONAI Label offers clicks for bundles of such a name, as the page of the bundle says."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A packed bundle with random weights."""
    folder = tmp_path_factory.mktemp("packed")
    return tiny_bundle("segvol", folder, seed=0, text=[]).rename(folder / DEEPGROW)


@pytest.fixture(scope="module")
def server(label_python, bundle, torso, tmp_path_factory):
    """A server of the bundle."""
    studies = tmp_path_factory.mktemp("studies")
    shutil.copy(torso, studies)
    with LabelServer(label_python, tmp_path_factory.mktemp("server"), [bundle], studies) as running:
        yield running


def test_server_offers_clicks(server):
    assert server.info()["models"][DEEPGROW]["type"] == "deepgrow"


@pytest.mark.parametrize(
    "clicks",
    [
        {"foreground": [[30, 25, 20]], "background": []},
        {"foreground": [[30, 25, 20], [33, 25, 20]], "background": [[12, 12, 15]]},
        {"foreground": [], "background": [], "roi": [10, 10, 40, 40, 10, 30]},
    ],
)
def test_clicks_give_the_mask_of_the_bundle(server, bundle, torso, tmp_path, clicks):
    answer = np.asarray(server.infer(DEEPGROW, "torso_003", label="liver", **clicks).image.dataobj)
    prompt = {"points": clicks["foreground"], "negative": clicks["background"]}
    if box := clicks.get("roi"):
        prompt["box"] = [*box[:2], box[4], *box[2:4], box[5]]
    (tmp_path / "prompts.json").write_text(json.dumps([prompt]))
    expected = np.asarray(own_run(bundle, torso, tmp_path / "own", "--prompts", str(tmp_path / "prompts.json")).dataobj)
    assert expected.any()
    assert not expected.all()
    np.testing.assert_array_equal(answer, expected)


def test_bad_click_is_refused_by_name(server):
    with pytest.raises(RuntimeError, match="lies outside of the image"):
        server.infer(DEEPGROW, "torso_003", foreground=[[500, 2, 3]], background=[])
