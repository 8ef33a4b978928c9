import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError, root_cause
from scripts.common.organs import ORGANS
from scripts.models.weight_files import save
from scripts.models.weights import load_weights
from scripts.solf.filter import LabelFilter
from scripts.solf.tables import cohort_table
from scripts.solf.thresholds import judge
from tests.scripts.solf.conftest import AFFINE, small_map


@pytest.fixture
def label_filter(fitted):
    def make(**options):
        network = LabelFilter(**options)
        network.thresholds = fitted
        return network

    return make


def batch(*maps):
    return MetaTensor(torch.from_numpy(np.stack(maps)[:, None]), affine=torch.from_numpy(AFFINE))


@pytest.mark.parametrize(("rejected", "value"), [("ignore", 255), ("background", 0), ("drop_case", 255)])
def test_rejected_label_becomes_what_was_chosen_and_the_others_stay(label_filter, rejected, value):
    label = small_map(5, half=[2])
    cleaned = label_filter(rejected=rejected, drop_share=0.5)(batch(label))[0, 0].numpy()
    np.testing.assert_array_equal(cleaned, np.where(label == 2, value, label))


def test_case_with_too_many_rejected_labels_is_dropped(label_filter, cohort):
    label = small_map(5, half=[2])
    assert (label_filter(rejected="drop_case", drop_share=0.3)(batch(label)) == 255).all()
    decisions = label_filter(rejected="drop_case", drop_share=0.3).decide(cohort["s05"])
    assert decisions.set_index("organ")["decision"].to_dict() == {
        "kidney_right": "reject",
        "kidney_left": "drop",
        "muscle": "drop",
    }
    assert decisions["reason"].iloc[1] == "33% of the case's labels are rejected"


def test_shares_are_counted_case_by_case(label_filter, cohort, fitted):
    network = label_filter(rejected="drop_case", drop_share=0.3)
    both = network.with_drops(judge(cohort_table([(c, cohort[c]) for c in ("s05", "s07")], ORGANS), fitted))
    assert both.groupby("case")["decision"].agg(lambda d: "drop" in set(d)).to_dict() == {"s05": True, "s07": False}


def test_features_that_are_known_give_the_same_map(label_filter, cohort):
    label = batch(small_map(5, half=[2]), small_map(7))
    features = torch.from_numpy(np.stack([cohort["s05"], cohort["s07"]]))
    assert torch.equal(label_filter()(label), label_filter()(label, features))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_output_has_the_type_and_affine_of_the_input(label_filter, dtype):
    label = batch(small_map(5, half=[2])).to(dtype)
    cleaned = label_filter()(label)
    assert cleaned.dtype == dtype
    assert cleaned.max() == 255
    np.testing.assert_allclose(cleaned.affine, AFFINE)


@pytest.mark.parametrize("ignore_id", [200, 1000])
def test_ignore_id_is_a_setting(label_filter, ignore_id):
    """nnU-Net wants the highest label; ignored voxels of the input stay and are not measured."""
    label = small_map(5, half=[2]).astype(np.uint16)
    label[:, :2] = ignore_id
    cleaned = label_filter(ignore_id=ignore_id)(batch(label.astype(np.int32)))[0, 0].numpy()
    np.testing.assert_array_equal(cleaned, np.where(label == 2, ignore_id, label))


@pytest.mark.parametrize(
    ("label", "ignore_id", "message"),
    [
        (torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8), 1000, "torch.uint8 cannot hold the ignore_id 1000; give"),
        (torch.full((1, 1, 2, 2, 2), 65536), 255, "label map holds values from 0 to 65536, labels are 0 to 65535"),
        (torch.full((1, 1, 2, 2, 2), -1), 255, "label map holds values from -1 to 0, labels are 0 to 65535"),
        (torch.full((1, 1, 2, 2, 2), torch.nan), 255, "label map holds values from nan to nan, labels are 0 to 65535"),
    ],
)
def test_label_maps_that_cannot_be_cleaned_are_refused(label_filter, label, ignore_id, message):
    with pytest.raises(InputError, match=message):
        label_filter(ignore_id=ignore_id)(label)


def test_missing_organs_do_not_count_as_labels_of_a_case(label_filter):
    """One of two labels that are there is rejected: half, not a quarter."""
    decisions = pd.DataFrame({"decision": ["reject", "keep", "missing", "missing"], "reason": ""})
    kept = label_filter(rejected="drop_case", drop_share=0.4).with_drops(decisions)
    assert kept["decision"].tolist() == ["reject", "drop", "missing", "missing"]
    assert kept["reason"].iloc[1] == "50% of the case's labels are rejected"


def test_input_is_not_changed(label_filter):
    label = batch(small_map(5, half=[2]))
    before = label.clone()
    label_filter()(label)
    assert torch.equal(label, before)


def test_spacing_counts(label_filter):
    """Shape features are in mm: the same voxels on a squeezed grid are another shape."""
    label = batch(small_map(7))
    squeezed = MetaTensor(label.as_tensor(), affine=torch.diag(torch.tensor([4.0, 4.0, 1.0, 1.0])))
    assert not (label_filter()(label) == 255).any()
    assert (label_filter()(squeezed) == 255).any()


def test_thresholds_are_part_of_the_weights(label_filter, fitted, tmp_path):
    save(label_filter().state_dict(), tmp_path / "model.pt")
    network = LabelFilter()
    load_weights(network, tmp_path / "model.pt")
    for name in ("low", "high", "quantiles", "subjects", "voting"):
        np.testing.assert_array_equal(getattr(network.thresholds, name), getattr(fitted, name))
    assert network.thresholds.votes == 2
    assert network.thresholds.features == fitted.features


def test_same_thresholds_give_the_same_file(label_filter, tmp_path):
    for name in ("a.pt", "b.pt"):
        save(label_filter().state_dict(), tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("table", [{"1": "spleen"}, {str(n): f"x{n}" for n in range(1, 73)}])
def test_thresholds_of_another_label_table_are_refused(label_filter, json_file, tmp_path, table):
    save(label_filter().state_dict(), tmp_path / "model.pt")
    network = LabelFilter(label_table=json_file(table))
    with pytest.raises(InputError, match=f"another label table than these {len(table)} labels; set label_table"):
        load_weights(network, tmp_path / "model.pt")


def test_weights_hold_the_label_table_the_rule_and_the_cohort(label_filter, fitted, tmp_path):
    save(label_filter().state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert json.loads(bytes(state["table"].tolist())) == [[label, name] for label, name in ORGANS.items()]
    about = json.loads(bytes(state["about"].tolist()))
    assert (about["rule"], about["epsilon_percent"], len(about["cohort"])) == ("percentile", 2.0, 64)
    assert state["cases"] == 60
    network = LabelFilter()
    load_weights(network, tmp_path / "model.pt")
    assert network.thresholds.fingerprint == fitted.fingerprint
    assert network.thresholds.about == fitted.about
    np.testing.assert_array_equal(network.thresholds.reference.spreads, fitted.reference.spreads)


def test_weights_of_earlier_versions_are_refused_with_one_message(tmp_path):
    save({"table_id": torch.tensor(714582432), "low": torch.zeros(72, 9)}, tmp_path / "model.pt")
    with pytest.raises(
        InputError, match=r"model\.pt: was fitted by a version before 0\.4\.0; fit again with this one\."
    ):
        load_weights(LabelFilter(), tmp_path / "model.pt")


def test_missing_organs_are_no_labels(label_filter, cohort):
    """They count neither in the share of rejected labels nor in the map."""
    label = small_map(5, half=[2])
    network = label_filter(rejected="drop_case", drop_share=0.45)
    decisions = network.decide(cohort["s05"])
    missing = decisions[decisions["decision"] == "keep"].iloc[:1].assign(decision="missing", label=1)
    kept = decisions[decisions["organ"] != "muscle"]  # one of two is rejected
    assert "drop" in set(network.with_drops(pd.concat([kept, missing, missing]))["decision"])
    assert network.with_drops(pd.concat([kept, missing]))["decision"].tolist()[-1] == "missing"
    network.decide = lambda *_: missing
    np.testing.assert_array_equal(network.clean(label, cohort["s05"]), label)
    assert (label == 1).sum() == 0 < label.sum()


def test_label_table_with_one_side_of_an_organ_is_refused(json_file):
    path = json_file({"1": "tonsil_right"})
    with pytest.raises(InputError, match=f"{path}: class 1 'tonsil_right' has no contralateral class 'tonsil_left'"):
        LabelFilter(label_table=path)


def test_filter_without_thresholds_refuses_to_decide():
    with pytest.raises(InputError, match="has no thresholds yet: fit it, or load"):
        LabelFilter()(batch(small_map(0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rejected": "delete"}, "rejected is 'delete': give one of ignore, background, drop_case"),
        ({"drop_share": 1.5}, "drop_share is 1.5: give a number from 0 to 1"),
        ({"drop_share": float("nan")}, "drop_share is nan: give a number from 0 to 1"),
        ({"drop_share": "a third"}, "drop_share is 'a third': give a number from 0 to 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LabelFilter(**options)


EXPORTS = {
    "trace": lambda network, label: torch.jit.trace(network, label),
    "script": lambda network, label: torch.jit.script(network),
    "export": lambda network, label: torch.export.export(network, (label,), strict=False),
    "strict export": lambda network, label: torch.export.export(network, (label,), strict=True),
}


@pytest.mark.parametrize("way", EXPORTS)
def test_graph_which_would_hold_no_measurement_is_refused(label_filter, way):
    """What NumPy computes is a constant of a traced graph: the volume of one map, or memory that nobody filled."""
    network, label = label_filter(), torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(Exception, match=r"no graph of TorchScript, torch\.export or ONNX can hold") as error:
        EXPORTS[way](network, label)
    if way != "strict export":  # there Dynamo raises an error of its own, which says the same
        assert isinstance(root_cause(error.value), InputError)


def test_norms_are_part_of_the_weights(conditional, fitted, cohort, covariates, tmp_path):
    network = LabelFilter()
    network.thresholds = conditional
    save(network.state_dict(), tmp_path / "model.pt")
    loaded = LabelFilter()
    load_weights(loaded, tmp_path / "model.pt")
    assert loaded.thresholds.fingerprint == conditional.fingerprint
    assert loaded.thresholds.norms.coding == covariates.coding
    text = json.dumps(covariates.rows["s05"])
    pd.testing.assert_frame_equal(loaded.decide(cohort["s05"], "", text), network.decide(cohort["s05"], "", text))
    network.thresholds = fitted
    assert network.thresholds.norms is None
    assert network.coefficients.isnan().all()


def test_filter_with_norms_judges_maps_by_their_covariates(conditional, cohort, covariates):
    network = LabelFilter()
    network.thresholds = conditional
    label, known = batch(small_map(5, half=[2]), small_map(7)), [json.dumps(covariates.rows[c]) for c in ("s05", "s07")]
    assert (network(label, covariates=known) == 255).any(dim=(1, 2, 3, 4)).tolist() == [True, False]
    assert network.decide(cohort["s05"], "", "null")["covariates"].tolist() == ["no row"] * 3
    with pytest.raises(InputError, match="the filter was fitted with the covariates age: set covariates to a CSV"):
        network(label)


@pytest.mark.parametrize(
    ("buffer", "index", "value"),
    [
        ("coefficients", (1, 5, 0), torch.nan),
        ("norm_low", (65, 0), 1e9),
        ("norm_high", (65, 0), torch.nan),
        ("coding", slice(0, 30), 32),
        ("coding", slice(0, 10), torch.tensor(list(b'{"a":{"m":'))),
    ],
)
def test_norms_that_no_fit_gives_are_refused(conditional, tmp_path, buffer, index, value):
    network = LabelFilter()
    network.thresholds = conditional
    getattr(network, buffer)[index] = value
    save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="not the thresholds of a fit: about, or coding with its coefficients, is not"):
        load_weights(LabelFilter(), tmp_path / "model.pt")
