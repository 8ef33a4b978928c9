"""The whole bundle at small size: prompts of all kinds on phantoms."""

import json
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.models.segvol import TOWER, TOWER_MARK
from scripts.models.text_features import write_text_features
from tests.conftest import ROOT, TINY_OF, message_of, run_bundle
from tests.scripts.models.tiny_networks import saved, state_of, tiny_of

TINY = TINY_OF["segvol"]
INFER = ["inference.json"]
SHAPE = (30, 26, 34)
AFFINE = nib.affines.from_matvec(np.array([[0.0, 0, 3], [2, 0.3, 0], [-0.3, 2, 0]]), [5, 6, 7])  # oblique, not RAS


@pytest.fixture(scope="module")
def network():
    """Random weights."""
    return tiny_of("segvol")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, network):
    return saved(tmp_path_factory.mktemp("weights") / "model.pt", network.state_dict())


@pytest.fixture
def image(tmp_path):
    """A body with air around it, on an oblique grid."""
    return write_image(tmp_path / "in" / "p1.nii.gz")


def write_image(path, air=4):
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    voxels[air:-air, air:-air, air:-air] = np.random.default_rng(0).integers(-50, 200, SHAPE)[
        air:-air, air:-air, air:-air
    ]
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def run(folder, weights, **settings):
    given = {**TINY, "text": [], "ckpt_path": str(weights), "output_dir": str(folder / "out")}
    run_bundle("segvol", INFER, **{**given, **{key: str(v) if key != "text" else v for key, v in settings.items()}})
    return folder / "out"


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("orientation", ["RAS", "file"])
def test_map_lies_on_the_grid_of_the_input(tmp_path, weights, image, orientation, parity):
    out = run(
        tmp_path,
        weights,
        input=image,
        text=["liver"],
        box="$[6, 6, 6, 20, 18, 25]",
        point="$[10, 10, 10]",
        orientation=orientation,
        parity=parity,
        gif=True,
    )
    found = nib.load(out / "p1_seg.nii.gz")
    assert found.shape == SHAPE
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
    labels = np.asarray(found.dataobj)
    assert set(np.unique(labels)) <= {0, 1}
    outside = np.ones(SHAPE, dtype=bool)
    outside[4:-4, 4:-4, 4:-4] = False
    assert not labels[outside].any()
    (row,) = pd.read_csv(out / "prompts.csv").to_dict("records")
    assert (row["case"], row["name"], row["prompt"], row["voxels"]) == ("p1", "liver", "point+box+text", labels.sum())
    assert {"p1_preview.png", "p1.gif", "run.json"} <= {path.name for path in out.iterdir()}


def test_file_of_prompts_makes_classes_and_files_where_they_overlap(tmp_path, weights, image):
    write_image(tmp_path / "in" / "p2.nii.gz")
    rows = [
        {"text": "liver"},
        {"case": "p1", "name": "cyst", "points": [[10, 10, 10]], "negative": [[6, 6, 6]]},
        {"case": "p1", "name": "all", "box": [4, 4, 4, 25, 21, 29]},
        {
            "case": "p2",
            "name": "mm",
            "points": [nib.affines.apply_affine(AFFINE, (10, 11, 12)).tolist()],
            "space": "RAS",
        },
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    out = run(tmp_path, weights, input=image.parent, prompts=tmp_path / "prompts.json")
    table = pd.read_csv(out / "prompts.csv")
    assert table[["case", "name", "class_id"]].to_numpy().tolist() == [
        ["p1", "liver", 1],
        ["p1", "cyst", 2],
        ["p1", "all", 3],
        ["p2", "liver", 1],
        ["p2", "mm", 4],
    ]
    labels = np.asarray(nib.load(out / "p1_seg.nii.gz").dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    for row in table.itertuples():
        alone = out / f"{row.case}_{row.name}_seg.nii.gz"
        assert alone.is_file() == (row.shared_voxels > 0)
        if alone.is_file():
            assert np.asarray(nib.load(alone).dataobj).sum() == row.voxels
        else:
            own = np.asarray(nib.load(out / f"{row.case}_seg.nii.gz").dataobj) == row.class_id
            assert own.sum() == row.voxels


def test_list_of_organs_becomes_one_map(tmp_path, weights, image):
    metadata = ROOT / "bundles" / "swin_bob_btcv" / "configs" / "metadata.json"
    out = run(tmp_path, weights, input=image, organs=metadata)
    table = pd.read_csv(out / "prompts.csv")
    assert table["class_id"].tolist() == list(range(1, 14))
    assert table["shared_voxels"].sum() == 0
    labels = np.asarray(nib.load(out / "p1_seg.nii.gz").dataobj)
    assert np.bincount(labels.ravel(), minlength=14)[1:].tolist() == table["voxels"].tolist()
    assert not list(out.glob("p1_*_seg.nii.gz"))


def test_stored_texts_need_neither_tokenizer_nor_text_tower_and_give_the_same(tmp_path, weights, network, monkeypatch):
    image = write_image(tmp_path / "in" / "p1.nii.gz")
    write_text_features(network, ["liver"], tmp_path / "texts.pt")
    small = {key: value for key, value in network.state_dict().items() if not key.startswith(TOWER)}
    small[TOWER_MARK] = network.state_dict()[TOWER_MARK]
    saved(tmp_path / "small.pt", small)
    settings = {**TINY, "input": str(image), "output_dir": str(tmp_path / "out")}
    maps, sizes = [], []
    for path, texts in ((weights, ""), (weights, "texts.pt"), (tmp_path / "small.pt", "texts.pt")):
        given = {"ckpt_path": str(path), "text_features": str(tmp_path / texts) if texts else ""}
        evaluator = run_bundle("segvol", INFER, kind="infer", **settings, **given).evaluator
        maps.append(np.asarray(nib.load(tmp_path / "out" / "p1_seg.nii.gz").dataobj))
        sizes.append(len(evaluator.network.state_dict()))
        monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
        monkeypatch.setattr("scripts.models.text_features.tokenize", None)
    assert maps[0].any()
    assert all(np.array_equal(maps[0], other) for other in maps[1:])
    assert sizes == [len(network.state_dict()), len(small), len(small)]


def test_weights_without_the_text_tower_need_stored_texts(tmp_path, network, image):
    state = {key: value for key, value in network.state_dict().items() if key == TOWER_MARK or TOWER not in key}
    message = message_of(run, tmp_path, saved(tmp_path / "small.pt", state), input=image, text=["liver"])
    assert "small.pt: weights without the text tower: to segment, give text_features" in message


def test_ct_series_is_segmented(tmp_path, weights, series):
    out = run(tmp_path, weights, input=series, text=["left kidney"], zoom_in=False)
    assert len(list(out.glob("*_seg.nii.gz"))) == 1


def test_no_prompt_is_refused_by_one_message(tmp_path, weights, image):
    assert message_of(run, tmp_path, weights, input=image) == (
        "no prompt: give prompts (a file), or organs, or some of text, point and box."
    )


def test_prompts_of_another_case_are_refused_by_one_message(tmp_path, weights, image):
    (tmp_path / "p.json").write_text('[{"case": "p7", "text": "liver"}]')
    message = message_of(run, tmp_path, weights, input=image, prompts=tmp_path / "p.json")
    assert "has prompts for the case 'p7', which the input lacks" in message


def test_weights_of_another_network_are_refused_by_one_message(tmp_path, image):
    other = saved(tmp_path / "other.pt", state_of())
    message = message_of(run, tmp_path, other, input=image, text=["liver"])
    assert message.startswith(f"{other}: weights of another network:")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"point": "$[0, 0, 0]"}, "prompt 1: all its points lie on air; move them onto the structure."),
        ({"point": "$[30, 0, 0]"}, "prompt 1: the point (30, 0, 0) lies outside of the image, of 30 x 26 x 34 voxels"),
        ({"box": "$[0, 0, 0, 2, 2, 2]"}, "prompt 1: its box holds only air"),
    ],
)
def test_prompt_that_means_nothing_fails_its_case(tmp_path, weights, image, settings, message):
    with pytest.raises(SystemExit):
        run(tmp_path, weights, input=image, **settings)
    assert pd.read_csv(tmp_path / "out" / "failed.csv").iloc[0, 1].startswith(message)
