import sys

import pytest

from scripts.common.errors import InputError
from scripts.models.clip_tokens import _tokenizer, tokenize

PREFIX, SUFFIX = "49406 320 11639 704 7690 999 22399 539 320", "269 49407"
VECTORS = {
    "liver": "12639",
    "kidney": "14610",
    "spleen": "588 15940",
    "pancreas": "27708 601",
    "aorta": "32044 1397",
    "lung": "16271",
    "heart": "1936",
    "stomach": "14722",
    "gallbladder": "3011 33593",
    "esophagus": "957 38634 8018",
    "duodenum": "691 78 1177 1008",
    "bladder": "33593",
    "left kidney": "1823 14610",
    "right kidney": "1155 14610",
    "inferior vena cava": "16258 2498 47442 48682",
    "portal vein and splenic vein": "14982 29169 537 18552 1029 29169",
    "right adrenal gland": "1155 24204 566 41441",
    "liver tumor": "12639 22616",
    "lung nodule": "16271 578 691 579",
    "vertebrae L1": "35158 40040 331 272",
}


@pytest.mark.parametrize("name", VECTORS)
def test_tokens_are_those_of_clip(name):
    tokens = tokenize([name])[0].tolist()
    assert tokens == [int(token) for token in f"{PREFIX} {VECTORS[name]} {SUFFIX}".split()]


def test_case_and_spaces_do_not_matter():
    assert tokenize(["  Left\n KIDNEY "]).tolist() == tokenize(["left kidney"]).tolist()


def test_shorter_texts_are_filled_up_with_the_end():
    long, short = tokenize(["portal vein and splenic vein", "liver"]).tolist()
    assert short[: len(tokenize(["liver"])[0])] == tokenize(["liver"])[0].tolist()
    assert len(long) == len(short)
    assert set(short[12:]) == {49407}


def test_empty_name_is_refused():
    with pytest.raises(InputError, match="the text ' ' is empty: give the name"):
        tokenize(["liver", " "])


def test_without_the_package_the_message_names_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    _tokenizer.cache_clear()
    with pytest.raises(InputError, match="instant-clip-tokenizer: install it, or give text_features"):
        tokenize(["liver"])
