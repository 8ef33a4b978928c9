import json

import pytest

from scripts.common.errors import InputError
from scripts.common.roi_subset import chosen_classes, chosen_ids
from tests.conftest import ROOT

CLASSES = {"0": "background", "1": "spleen", "2": "right kidney", "6": "liver"}
CHANNEL_DEF = {str(index): CLASSES.get(str(index), f"organ {index}") for index in range(7)}


def test_chosen_classes_keep_their_ids():
    assert chosen_classes(CHANNEL_DEF, ["liver", "spleen"]) == {1: "spleen", 6: "liver"}


def test_no_subset_is_all_classes():
    assert list(chosen_classes(CHANNEL_DEF)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lver"], "roi_subset names 'lver', which is not a class; did you mean 'liver'?"),
        (["kidney right"], "roi_subset names 'kidney right', which is not a class; did you mean 'right kidney'?"),
        (["background"], "roi_subset names 'background', which is not a class; the classes are spleen, right kidney"),
        ([], r"roi_subset is []: give a list of classes, some of spleen, right kidney"),
        ("liver", "roi_subset is 'liver': give a list of classes, some of spleen, right kidney"),
    ],
)
def test_other_names_are_refused_with_the_nearest(names, message):
    with pytest.raises(InputError) as error:
        chosen_classes(CHANNEL_DEF, names)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("bundle", "name", "ids"), [("btcv", "liver", [6]), ("brats", "edema", [2])])
def test_ids_are_those_of_the_metadata_file(bundle, name, ids):
    path = ROOT / "bundles" / f"swin_bob_{bundle}" / "configs" / "metadata.json"
    channel_def = json.loads(path.read_text())["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert chosen_ids([name], path) == ids == [int(k) for k, v in channel_def.items() if v == name]


def test_metadata_are_not_needed_without_a_subset(tmp_path):
    assert chosen_ids(None, tmp_path / "missing.json") is None
