import pytest
import torch

from scripts.common.errors import InputError
from scripts.models.clip_tokens import tokenize
from scripts.models.text_features import TextFeatures, write_text_features
from tests.scripts.models.tiny_networks import saved, tiny_segvol


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_embeddings_are_those_of_the_network_whatever_is_asked_together():
    network, texts = tiny_segvol(), TextFeatures()
    found = texts(network, ["liver", "portal vein and splenic vein", " Liver "])
    torch.testing.assert_close(found[0], network.encode_text(tokenize(["liver"]))[0])
    assert torch.equal(found[0], found[2])


def test_stored_features_need_no_tokenizer_and_serve_fine_tuned_weights(tmp_path, monkeypatch):
    network = tiny_segvol()
    write_text_features(network, ["liver"], tmp_path / "texts.pt")
    network.text_encoder.dim_align.weight.mul_(2)
    expected = TextFeatures()(network, ["liver"])
    monkeypatch.setattr("scripts.models.text_features.tokenize", None)
    torch.testing.assert_close(TextFeatures(tmp_path / "texts.pt")(network, ["LIVER"]), expected)


def test_network_without_the_tower_gives_the_same_and_lacks_other_texts(tmp_path):
    whole, small = tiny_segvol(), tiny_segvol(seed=1, text_tower=False)
    write_text_features(whole, ["liver"], tmp_path / "texts.pt")
    small.load_state_dict(whole.state_dict())
    texts = TextFeatures(tmp_path / "texts.pt")
    assert torch.equal(texts(small, ["liver"]), texts(whole, ["liver"]))
    with pytest.raises(InputError, match=r"texts.pt: lacks the text 'cyst': write it again with --texts"):
        texts(small, ["liver", "cyst"])


def test_features_of_another_tower_are_refused(tmp_path):
    write_text_features(tiny_segvol(seed=0), ["liver"], tmp_path / "texts.pt")
    with pytest.raises(InputError, match=r"texts.pt: holds the text features of other weights: write it again"):
        TextFeatures(tmp_path / "texts.pt")(tiny_segvol(seed=1), ["liver"])


def test_missing_file_is_refused_before_it_is_used(tmp_path):
    with pytest.raises(InputError, match=r"none.pt: no such file; set text_features to one that --text_features"):
        TextFeatures(tmp_path / "none.pt")


def test_other_files_are_refused(tmp_path):
    path = saved(tmp_path / "model.pt", tiny_segvol().state_dict())
    with pytest.raises(InputError, match=r"model.pt: holds no text features: give a file"):
        TextFeatures(path)(tiny_segvol(), ["liver"])
