import json
from itertools import product

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import Dataset

from scripts.common.errors import InputError
from scripts.solf.contacts import MAX_CONTACT_LABELS, fit_contacts, pairs_as_text, partners, with_unusual_contacts
from scripts.solf.features import shapes_and_contacts
from scripts.solf.filter import LabelFilter
from scripts.solf.measuring import features_and_contacts
from scripts.solf.training import FilterTrainer
from scripts.solf.transforms import ShapeFeaturesd
from tests.scripts.solf.conftest import AFFINE, small_map

THREE = {1: "spleen", 5: "liver", 6: "stomach"}


def touching_pairs(label):
    """All pairs of different labels at neighbouring places, one of 26 steps apart, by shifted copies of the map."""
    padded, found = np.pad(label, 1), set()
    for step in product((-1, 0, 1), repeat=3):
        other = np.roll(padded, step, axis=(0, 1, 2))
        met = (padded != other) & (padded > 0) & (other > 0)
        found |= {tuple(sorted(pair)) for pair in zip(padded[met].tolist(), other[met].tolist(), strict=True)}
    return found


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_contacts_are_those_of_shifted_copies(share, order):
    rng = np.random.default_rng(int(100 * share))
    label = rng.integers(1, 12, (7, 8, 9)) * (rng.random((7, 8, 9)) < share)
    label = np.asarray(label.astype(np.uint16), order=order)
    columns, touching = shapes_and_contacts(label, np.eye(4))
    text = pairs_as_text(columns["label"], touching)
    pairs = {tuple(map(int, pair.split())) for pair in text.split(",")}
    assert pairs == touching_pairs(label)
    assert (touching == touching.T).all()
    assert not touching.diagonal().any()


def test_touching_corners_are_a_contact_and_a_gap_of_one_voxel_is_none():
    label = np.zeros((6, 6, 6), np.uint8)
    label[1, 1, 1], label[2, 2, 2], label[4, 2, 2] = 1, 5, 6
    assert features_and_contacts(label, AFFINE, THREE)[1] == "1 5"
    assert partners("1 5") == {1: [5], 5: [1]}
    assert partners("") == {}


def test_maps_and_tables_of_very_many_labels_have_no_contacts():
    label = np.arange(2 * 6 * 100, dtype=np.uint16).reshape(2, 6, 100)
    columns, touching = shapes_and_contacts(label, np.eye(4))
    assert len(columns["label"]) > MAX_CONTACT_LABELS
    assert pairs_as_text(columns["label"], touching) == ""
    organs = {n: f"organ {n}" for n in range(1, MAX_CONTACT_LABELS + 2)}
    table = pd.DataFrame({"case": "a", "label": [1, 2], "contacts": ["2", "1"]})
    percent = fit_contacts([table], organs)
    assert with_unusual_contacts(table, table, percent, organs)["unusual_contacts"].tolist() == ["", ""]


def people(count, *, touching=(), without=()):
    """Return tables of liver and stomach, which always touch, and a spleen that touches the liver in some."""
    rows = []
    for n in range(count):
        near = n in touching
        rows += [(f"p{n}", 5, "1 6" if near else "6"), (f"p{n}", 6, "5")]
        rows += [] if n in without else [(f"p{n}", 1, "5" if near else "")]
    table = pd.DataFrame(rows, columns=["case", "label", "contacts"])
    return [part for _, part in table.groupby(table["case"].str[-1])]


def test_shares_are_of_the_cases_with_both_organs():
    percent = fit_contacts(people(400, touching=[3, 17], without=range(100, 300)), THREE)
    assert percent[0, 1] == percent[1, 0] == 1.0
    assert percent[1, 2] == percent[2, 1] == 100
    assert percent[0, 2] == 0
    few = fit_contacts(people(150, touching=[3], without=range(51)), THREE)
    assert np.isnan(few[0, 1])
    assert few[1, 2] == 100


def test_contacts_of_less_than_one_percent_are_unusual_and_named():
    table = pd.concat(people(300, touching=[3, 17]))
    decisions = pd.concat([table[["case", "label"]], pd.DataFrame({"case": ["p3"], "label": [1]})])
    found = with_unusual_contacts(decisions, table, fit_contacts([table], THREE), THREE).set_index(["case", "label"])
    named = found[found["unusual_contacts"] != ""]["unusual_contacts"]
    assert named.groupby(level=[0, 1]).first().to_dict() == {
        ("p3", 1): "liver",
        ("p3", 5): "spleen",
        ("p17", 1): "liver",
        ("p17", 5): "spleen",
    }
    usual = fit_contacts(people(300, touching=range(3)), THREE)  # 1 %
    assert (with_unusual_contacts(decisions, table, usual, THREE)["unusual_contacts"] == "").all()


def test_fit_learns_contacts_and_cleaning_names_unusual_ones(cohort_dataset, cleaner, tmp_path, monkeypatch):
    """Muscle touches both kidneys in all maps, and another organ, which lies apart, only in that of s03."""
    monkeypatch.setattr("scripts.solf.contacts.MIN_TOGETHER", 10)
    dataset = cohort_dataset(12)
    for n, case in enumerate(dataset.data):
        label = small_map(n)
        label[0, 0, 0] = 21
        if n == 3:
            label[:, 23, 27], label[1, 22:, 26:] = 66, 0
            label[2, 22, 26] = 21
        nib.save(nib.Nifti1Image(label, AFFINE), case["image"])
    options = {"rule": {"epsilon_percent": 20.0}, "workers": 0, "output_dir": tmp_path / "fit", "qc": False}
    some = Dataset([case for case in dataset.data if case["case"] != "s03"], dataset.transform)
    FilterTrainer(network=LabelFilter(), dataset=some, ckpt_path=tmp_path / "fit" / "model.pt", **options).run()
    state = torch.load(tmp_path / "fit" / "model.pt", weights_only=True)
    rows = [list(LabelFilter().organs).index(label) for label in (2, 21, 66)]
    percent = state["contact_percent"][rows][:, rows]
    assert percent.tolist()[0][2] == 100
    assert percent.tolist()[1][2] == 0
    features = pd.read_parquet(tmp_path / "fit" / "features.parquet")
    assert features.loc[features["label"] == 66, "contacts"].tolist() == ["2 3"] * 11
    run = cleaner(dataset)
    run.ckpt_path = tmp_path / "fit" / "model.pt"
    run.run()
    decisions = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False)
    unusual = decisions[decisions["unusual_contacts"] != ""].set_index(["case", "organ"])["unusual_contacts"]
    names = LabelFilter().organs
    assert unusual.to_dict() == {("s03", names[21]): names[66], ("s03", names[66]): names[21]}


def test_weights_with_impossible_contacts_are_refused(fitted):
    network = LabelFilter()
    network.thresholds = fitted
    state = network.state_dict()
    state["contact_percent"] = state["contact_percent"].clone()
    state["contact_percent"][0, 0] = 101
    with pytest.raises(InputError, match="contact_percent is not from 0 to 100"):
        network.refuse_state(state, "model.pt")


def test_transform_passes_contacts_on_as_text(cohort_dataset):
    dataset = cohort_dataset(1)
    item = dataset[0]
    assert isinstance(dataset.transform.transforms[-1], ShapeFeaturesd)
    assert item["image"].meta["contacts"] == "2 66,3 66"
    assert json.loads(json.dumps(item["image"].meta["contacts"]))
