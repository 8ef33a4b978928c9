"""The real MONAI Label server with packed bundles: its answers against the bundles' own runs."""

import shutil

import numpy as np
import pytest
import torch

from tests.clients.bundles import assert_same_label_map, copy_bundle, own_run, set_values, write_weights
from tests.clients.label_server import LabelServer

BTCV, BRATS, PRETRAIN = "swin_bob_btcv", "swin_bob_brats", "swin_bob_pretrain"
EPOCHS = 3
OF_FOLDER = {"result_extension": ".nii.gz"}
"""The server names the result after the input, and answers 500 where that has no extension."""


@pytest.fixture(scope="module")
def studies(torso, torso_data, tmp_path_factory):
    """Images of three patients with their labels, and one without."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copytree(torso_data / "imagesTr", folder, dirs_exist_ok=True)
    shutil.copytree(torso_data / "labelsTr", folder / "labels" / "final")
    shutil.copy(torso, folder)
    return folder


@pytest.fixture(scope="module")
def server(label_python, packed, studies, tmp_path_factory):
    """A server of three bundles at once; each has a package named `scripts`."""
    bundles = [packed / BTCV, packed / BRATS, packed / PRETRAIN]
    with LabelServer(label_python, tmp_path_factory.mktemp("server"), bundles, studies) as running:
        yield running


@pytest.fixture(scope="module")
def own_btcv(packed, torso, tmp_path_factory):
    return own_run(packed / BTCV, torso, tmp_path_factory.mktemp("own_btcv"))


@pytest.fixture(scope="module")
def own_brats(packed, brain, tmp_path_factory):
    return own_run(packed / BRATS, brain, tmp_path_factory.mktemp("own_brats"))


# Segmenting


def test_ct_gets_the_label_map_and_the_names_of_the_bundle(server, own_btcv):
    answer = server.infer(BTCV, "torso_003")
    assert_same_label_map(answer.image, own_btcv)
    assert (answer.label_names["spleen"], answer.label_names["left adrenal gland"]) == (1, 13)
    assert len(answer.label_names) == 13


@pytest.mark.parametrize("given", ["folder", "sequence"])
def test_brain_is_found_by_its_folder_or_one_sequence(server, brain, own_brats, given):
    image = brain if given == "folder" else brain / f"{brain.name}-t2f.nii.gz"
    assert_same_label_map(server.infer(BRATS, str(image), **OF_FOLDER).image, own_brats)


def test_volume_of_four_contrasts_gets_the_label_map_and_the_names_of_the_bundle(server, packed, dixon, tmp_path):
    expected = own_run(packed / PRETRAIN, dixon, tmp_path / "own")
    answer = server.infer(PRETRAIN, str(dixon))
    assert_same_label_map(answer.image, expected)
    assert len(answer.label_names) == 72


def test_brain_labels_are_named_as_the_map_holds_them(server):
    names = server.info()["models"][BRATS]["labels"]
    assert names == {"necrotic core": 1, "edema": 2, "enhancing tumour": 3}


def test_bundles_in_turn_do_not_mix_their_scripts(server, brain, own_btcv):
    """The server unloads `scripts` and imports that of the next bundle in one process."""
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"500 of /infer/swin_bob_brats"):
            server.infer(BRATS, str(brain / "no-such-file.nii.gz"))
        assert_same_label_map(server.infer(BTCV, "torso_003").image, own_btcv)


def test_path_outside_of_the_studies_is_segmented(server, packed, torso_data, tmp_path):
    image = torso_data / "imagesTr" / "torso_000.nii.gz"
    expected = own_run(packed / BTCV, image, tmp_path / "own")
    assert_same_label_map(server.infer(BTCV, str(image)).image, expected)


def test_dicom_folder_is_segmented(server, packed, series, tmp_path):
    expected = own_run(packed / BTCV, series, tmp_path / "own")
    assert_same_label_map(server.infer(BTCV, str(series), **OF_FOLDER).image, expected)


@pytest.mark.xfail(strict=True, reason="numba needs the module scripts, which the server unloads")
def test_server_starts_with_the_label_filter_beside_the_others(label_python, packed, label_filter, studies, tmp_path):
    with LabelServer(label_python, tmp_path, [packed / BTCV, label_filter], studies) as server:
        assert BTCV in server.info()["models"]


def test_bad_image_is_refused_by_name(server, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"bad\.nii\.gz: cannot be read"):
        server.infer(BTCV, str(bad))


# Weights


@pytest.fixture
def variant(packed, label_python, torso, tmp_path):
    """Return a function that starts a server with a changed copy of the bundle, and the copy."""

    def start(name, change):
        bundle = copy_bundle(packed / name, tmp_path / "bundles")
        change(bundle)
        studies = tmp_path / "studies"
        studies.mkdir()
        shutil.copy(torso, studies)
        (tmp_path / "server").mkdir()
        return LabelServer(label_python, tmp_path / "server", [bundle], studies), bundle

    return start


def test_legacy_weights_are_refused_by_a_network_of_the_other_merging(variant):
    start, _ = variant(BTCV, lambda bundle: write_weights(bundle, seed=5, legacy_merging=True))
    with start as server, pytest.raises(RuntimeError, match="set legacy_merging to true"):
        server.infer(BTCV, "torso_003")


def test_legacy_weights_segment_as_in_the_bundle(variant, torso, tmp_path):
    def change(bundle):
        write_weights(bundle, seed=5, legacy_merging=True)
        set_values(bundle, "inference", {"legacy_merging": True})

    start, bundle = variant(BTCV, change)
    expected = own_run(bundle, torso, tmp_path / "own")
    with start as server:
        assert_same_label_map(server.infer(BTCV, "torso_003").image, expected)


def test_adapting_inferer_gives_the_map_of_the_bundle(variant, torso, own_btcv, tmp_path):
    """Entropy test-time adaptation without an evaluator: `docs/etta.md` shows how to wrap the inferer."""
    settings = {"adapt": "weights", "steps": 1, "min_entropy_drop": 0.0, "volume_band": [0.0, 1000.0]}

    def change(bundle):
        inner = {"_target_": "SlidingWindowInferer", "roi_size": "@patch_size", "sw_batch_size": "@sw_batch_size"}
        inner |= {"overlap": "@sw_overlap", "mode": "gaussian", "padding_mode": "replicate"}
        wrapped = {"_target_": "scripts.etta.settings.ETTASettings", **settings}
        inferer = {"_target_": "scripts.etta.inferer.ETTAInferer", "inferer": inner, "settings": wrapped}
        set_values(bundle, "inference", {"inferer": inferer})

    start, bundle = variant(BTCV, change)
    expected = own_run(bundle, torso, tmp_path / "own")
    assert (np.asarray(expected.dataobj) != np.asarray(own_btcv.dataobj)).any(), "nothing was adapted"
    with start as server:
        assert_same_label_map(server.infer(BTCV, "torso_003").image, expected)


# Training


@pytest.fixture(scope="module")
def trained(label_python, packed, studies, tmp_path_factory):
    """A bundle that the server trained."""
    folder = tmp_path_factory.mktemp("training")
    bundle = copy_bundle(packed / BTCV, folder)
    with LabelServer(label_python, folder, [bundle], studies) as server:
        server.train(BTCV, max_epochs=EPOCHS, val_split=0.34)
    return bundle


def states(bundle):
    """Return the contents of all files in `models` that torch reads, but for the weights."""
    files = [file for file in (bundle / "models").rglob("*") if file.is_file() and file.name != "model.pt"]
    found = []
    for file in files:
        try:
            found.append(torch.load(file, weights_only=True))
        except Exception:  # not a file of torch
            continue
    return found


def test_training_by_the_server_writes_new_weights(trained, packed):
    before, after = (
        torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (packed / BTCV, trained)
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_schedule_ends_with_the_epochs_of_the_server(trained):
    (state,) = (state for state in states(trained) if "lr_scheduler" in state)
    schedule = state["lr_scheduler"]
    assert (schedule["last_epoch"], schedule["t_total"]) == (EPOCHS, EPOCHS)
    assert schedule["warmup_steps"] < EPOCHS


def test_restarted_server_segments_with_the_best_weights(trained, torso, label_python, studies, tmp_path):
    expected = own_run(trained, torso, tmp_path / "own")
    (tmp_path / "server").mkdir()
    with LabelServer(label_python, tmp_path / "server", [trained], studies) as server:
        assert_same_label_map(server.infer(BTCV, "torso_003").image, expected)


def test_restarted_server_offers_weights_only(trained, label_python, studies, tmp_path):
    (tmp_path / "server").mkdir()
    with LabelServer(label_python, tmp_path / "server", [trained], studies) as server:
        info = server.info()
    assert info["models"][BTCV]["config"]["model_filename"] == ["model.pt"]
    assert info["trainers"][BTCV]["config"]["model_filename"] == ["model.pt"]
