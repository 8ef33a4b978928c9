import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.solf.report.counts import Limits
from scripts.solf.report.folder import _LIBRARIES, ASSETS, check_report, packed_decimals
from scripts.solf.report.write import rule_in_words, write_report
from scripts.solf.transforms import LoadLabelMapd

ORGANS = {2: "kidney_right", 3: "kidney_left", 66: "muscle"}
FEATURES = ["sphericity", "eccentricity"]
BOUNDS = {"sphericity": (0.4, 0.5, 0.6), "eccentricity": (0.7, 0.8, 0.9)}
THRESHOLDS = {
    "rule": "percentile",
    "features": FEATURES,
    "votes": 2,
    "epsilon_percent": 2.0,
    "subjects": 150,
    "organs": {
        str(label): {
            "organ": organ,
            "subjects": 150,
            **{name: dict(zip(("low", "median", "high"), bounds, strict=True)) for name, bounds in BOUNDS.items()},
        }
        for label, organ in ORGANS.items()
    },
}
EVIL = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "&lt;b&gt;\"'\u2028",
    "Ω_1",
]


def decision_table(cases=150, seed=0):
    """Decisions about three organs a case; the last case is dropped, some features are NaN, four names are evil."""
    rng = np.random.default_rng(seed)
    names = sorted([*EVIL, *(f"case_{n:04d}" for n in range(cases - len(EVIL)))])
    case, label = np.repeat(np.array(names, dtype=object), len(ORGANS)), np.tile(list(ORGANS), cases)
    values = rng.normal([0.5, 0.8], 0.1, (len(case), 2))
    values[rng.random(values.shape) < 0.02] = np.nan
    outside = ~((values >= [0.4, 0.7]) & (values <= [0.6, 0.9]))
    votes = outside.sum(axis=1)
    decision = np.where(votes >= 2, "reject", "keep").astype(object)
    decision[case == names[-2]] = "drop"
    reason = [f"sphericity {v:.2f} is <b>odd</b>" if n == 2 else "" for v, n in zip(values[:, 0], votes, strict=True)]
    table = pd.DataFrame({"case": pd.Series(case, dtype=object), "label": label})
    table["organ"] = table["label"].map(ORGANS)
    for column, name in enumerate(FEATURES):
        table[name], table[f"{name}_percentile"] = values[:, column], 100 * rng.random(len(case))
    table.loc[np.isnan(values[:, 1]), "eccentricity_percentile"] = np.nan
    return table.assign(votes=votes, decision=decision, reason=reason)


def chunks(table, cases):
    groups = [group for _, group in table.groupby("case", sort=True)]
    return [pd.concat(groups[n : n + cases]) for n in range(0, len(groups), cases)]


def write(folder, table, *, cases_per_chunk=40, **options):
    index = write_tables(folder, lambda: iter(chunks(table, cases_per_chunk)), **options)
    assert index == folder / "qc" / "index.html"
    return index.parent


def write_tables(folder, decisions, **options):
    """Write a report of label maps that the bundle's transform reads."""
    given = {"thresholds": THRESHOLDS, "sources": {}, "load": load, **options}
    return write_report(folder, decisions=decisions, **given)


def load(path):
    return LoadLabelMapd("image")({"image": path})["image"]


def received(report, name):
    """Read a file of data without the page's code."""
    text = (report / "data" / f"{name}.js").read_text(encoding="ascii")
    head = f'qc.receive("{name}",'
    assert text.startswith(head)
    return json.loads(text.removeprefix(head).removesuffix(");\n"))


def unpacked(column):
    raw = zlib.decompress(base64.b64decode(column["data"]))
    if column["type"] == "json":
        return json.loads(raw)
    planes = np.frombuffer(raw, np.uint8).reshape(-1, column["size"])
    return planes.T.copy().view(np.dtype(column["type"]).newbyteorder("<"))[:, 0]


def decimals(column):
    pairs = zip(unpacked(column["mantissa"]), unpacked(column["exponent"]), strict=True)
    return ["nan" if ten == -128 else f"{float(f'{digits}e{ten}'):.4g}" for digits, ten in pairs]


def contents(report):
    return {str(file.relative_to(report)): file.read_bytes() for file in sorted(report.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def table():
    return decision_table()


@pytest.fixture(scope="module")
def report(table, tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"), table)


def rejected_rows(table):
    return table[(table["votes"] >= 2) & (table["decision"] != "keep")]


def test_overview_counts_what_the_table_holds(report, table):
    overview, rejected = received(report, "overview"), rejected_rows(table)
    assert overview["totals"] == {
        "cases": 150,
        "labels": 450,
        "rejected": len(rejected),
        "cases_with_rejections": rejected["case"].nunique(),
        "dropped": 1,
    }
    for row in overview["organs"]:
        own = table[table["label"] == row["label"]]
        outside = [int(((own[f] < BOUNDS[f][0]) | (own[f] > BOUNDS[f][2])).sum()) for f in FEATURES]
        assert (row["organ"], row["labels"]) == (ORGANS[row["label"]], len(own))
        assert (row["rejected"], row["outside"]) == (int((rejected["label"] == row["label"]).sum()), outside)


def test_label_pages_hold_every_row_to_four_digits(report, table):
    pages = [received(report, f"labels-{n:05d}") for n in range(3)]
    names = [name for page in pages for name in unpacked(page["names"])]
    assert names == sorted(table["case"].unique())
    whole = {key: np.concatenate([unpacked(page[key]) for page in pages]) for key in ("label", "votes", "decision")}
    assert np.array_equal(whole["label"], table["label"])
    assert np.array_equal(whole["votes"], table["votes"])
    assert [("keep", "reject", "drop")[code] for code in whole["decision"]] == list(table["decision"])
    for column, name in enumerate(FEATURES):
        values = [value for page in pages for value in decimals(page["values"][column])]
        percentiles = np.concatenate([unpacked(page["percentiles"][column]) for page in pages]).astype(float)
        percentiles[percentiles == 65535] = np.nan
        assert values == [f"{value:.4g}" for value in table[name]]
        assert np.allclose(percentiles / 100, table[f"{name}_percentile"], rtol=0, atol=0.0051, equal_nan=True)
    first = unpacked(pages[0]["reasons"])
    assert first == {str(row): text for row, text in enumerate(table["reason"][: 64 * 3]) if text}


def test_decimals_are_exact_at_every_size():
    values = [0.0, -0.0, 9.9996, 0.00099996, -123456.0, 1e-30, 7.0, np.nan, np.inf, 12345e20, 1e-310]
    shown = decimals(packed_decimals(np.array(values)))
    assert shown == ["0", "0", "10", "0.001", "-1.235e+05", "1e-30", "7", "nan", "nan", "1.234e+24", "0"]


def test_case_index_holds_what_the_page_sorts_and_filters_by(report, table):
    packed = received(report, "cases")
    index = {name: unpacked(column) for name, column in packed.items()}
    rejected = rejected_rows(table)
    groups = table.groupby("case")
    assert index["names"] == list(groups.groups)
    assert list(index["labels"]) == list(groups.size())
    assert list(index["rejected"]) == list(rejected.groupby("case").size().reindex(groups.groups, fill_value=0))
    assert list(index["dropped"]) == [int((group["decision"] == "drop").any()) for _, group in groups]
    assert list(index["rejections"]) == list(rejected["label"])


def small_table(rows):
    """(case, label, sphericity, eccentricity) with decisions by BOUNDS."""
    table = pd.DataFrame(rows, columns=["case", "label", *FEATURES])
    outside = [(table[f] < BOUNDS[f][0]) | (table[f] > BOUNDS[f][2]) for f in FEATURES]
    votes = outside[0].astype(int) + outside[1]
    table = table.assign(organ=table["label"].map(ORGANS), sphericity_percentile=1.0, eccentricity_percentile=99.0)
    return table.assign(votes=votes, decision=np.where(votes >= 2, "reject", "keep"), reason="")


def test_worst_cases_are_those_with_most_rejections_then_those_farthest_outside(tmp_path):
    rows = [
        ("a", 2, 0.38, 0.92),  # by a tenth of the width
        ("b", 2, 0.38, 0.96),  # by 0.3
        ("c", 2, 0.38, 0.92),
        ("c", 3, 0.37, 0.92),  # farther than the other
        ("d", 2, 0.0, 0.8),  # one vote
        ("e", 2, 0.5, 0.8),
    ]
    report = write(tmp_path, small_table(rows))
    worst = received(report, "overview")["worst"]
    assert [one["case"] for one in worst] == ["c", "b", "a"]
    assert [one["worst"] for one in worst] == [3, 2, 2]
    assert np.allclose([one["excess"] for one in worst], [0.15, 0.3, 0.1])
    assert [row["label"] for row in worst[0]["rejections"]] == [2, 3]
    assert len(received(write(tmp_path, small_table(rows), worst=1), "overview")["worst"]) == 1


def test_excess_of_a_single_threshold_counts_from_the_median():
    bounds = {"low": None, "median": 1.0, "high": 3.0}
    organs = {"7": {"components": bounds}, "8": {"components": {"low": 2.0, "median": 2.0, "high": 2.0}}}
    limits = Limits.read({"features": ["components"], "votes": 1, "organs": organs})
    values = np.array([[5.0], [-9.0], [np.nan], [4.0], [9.0]])
    assert limits.excess(np.array([7, 7, 7, 8, 99]), values).tolist() == [0.5, 0, 0, 0.5, 0]


def test_histograms_count_every_label_once(report, table):
    histograms = received(report, "histograms")
    for label in ORGANS:
        own = table[table["label"] == label]
        rejected = own.index.isin(rejected_rows(own).index)
        for name, (low, median, high) in BOUNDS.items():
            one, values = histograms[str(label)][name], own[name].to_numpy()
            assert (one["low"], one["median"], one["high"]) == (low, median, high)
            edges = np.linspace(one["start"], one["stop"], len(one["kept"]) + 1)
            for kind, mask in (("kept", ~rejected), ("rejected", rejected)):
                expected, _ = np.histogram(values[mask & ~np.isnan(values)], edges)
                assert one[kind] == expected.tolist()
            assert one["below"] + one["above"] == int(((values < one["start"]) | (values > one["stop"])).sum())


def test_histogram_without_thresholds_covers_all_values(tmp_path):
    bare = {**THRESHOLDS, "organs": {"2": {"organ": "kidney_right"}}}
    table = small_table([("a", 2, 0.1, 0.5), ("b", 2, 0.3, np.nan), ("c", 2, 0.7, np.nan), ("d", 3, 0.5, np.nan)])
    histograms = received(write(tmp_path, table, thresholds=bare), "histograms")
    one = histograms["2"]["sphericity"]
    assert (one["start"], one["stop"], sum(one["kept"]), one["kept"][-1]) == (0.1, 0.7, 2, 1)
    assert one["rejected"] == [1, *[0] * 59]
    assert (histograms["2"]["eccentricity"]["start"], sum(histograms["2"]["eccentricity"]["rejected"])) == (0.5, 1)
    assert histograms["3"]["eccentricity"]["start"] is None


@pytest.mark.parametrize("cases_per_chunk", [1, 7, 64, 1000])
def test_bytes_do_not_depend_on_chunks_or_run(report, table, tmp_path, cases_per_chunk):
    assert contents(write(tmp_path, table, cases_per_chunk=cases_per_chunk)) == contents(report)


def test_names_are_never_part_of_a_page(report):
    assert (report / "index.html").read_bytes() == (ASSETS / "index.html").read_bytes()
    assert all(file.read_bytes().isascii() for file in (report / "data").iterdir())


def test_name_that_is_not_utf8_is_kept(tmp_path):
    table = small_table([("a", 2, 0.2, 0.95)]).assign(case=pd.Series(["z\udcff"], dtype=object))
    report = write_tables(tmp_path, lambda: iter([table])).parent
    assert unpacked(received(report, "cases")["names"]) == ["z\udcff"]


def test_page_refers_to_no_address_outside_its_folder():
    for asset in ASSETS.iterdir():
        assert not re.search(r"https?:|//[a-z]|\burl\(|@import|\bfetch\(|XMLHttp", asset.read_text(encoding="utf-8"))


def test_rule_is_described_in_words():
    assert rule_in_words(THRESHOLDS) == (
        "A label is rejected if at least 2 of 2 features (sphericity, eccentricity) are outside their thresholds. "
        "Outside are the lowest and the highest 2 % of the cohort, for each organ. "
        "The thresholds were fitted to 150 subjects."
    )
    assert "Outside are values by the rule mine." in rule_in_words({"rule": "mine", "features": ["a"], "votes": 1})


def test_rule_of_loaded_weights_is_unknown_and_not_described():
    assert rule_in_words({"features": ["a"], "votes": 1, "subjects": 60}) == (
        "A label is rejected if at least 1 of 1 features (a) are outside their thresholds. "
        "The thresholds were fitted to 60 subjects."
    )


def test_report_of_no_cases(tmp_path):
    report = write_tables(tmp_path, lambda: iter([])).parent
    assert received(report, "overview")["totals"]["labels"] == 0
    assert received(report, "histograms") == {}


def test_old_report_is_replaced_only_by_a_complete_one(tmp_path):
    table = small_table([("a", 2, 0.2, 0.95)])
    old = contents(write(tmp_path, table))
    (tmp_path / ".tmp-qc-left-by-a-killed-run" / "data").mkdir(parents=True)
    passes = iter([[table], [small_table([("a", 2, 0.2, 0.95), ("a", -2, 0.2, 0.95)])]])
    with pytest.raises(InputError, match="holds labels -2 to 2"):
        write_tables(tmp_path, lambda: iter(next(passes)))
    assert [path.name for path in tmp_path.iterdir()] == ["qc"]
    assert contents(tmp_path / "qc") == old
    assert contents(write(tmp_path, small_table([("b", 2, 0.2, 0.95)]))) != old


def bad(**changes):
    return small_table([("a", 2, 0.5, 0.8), ("b", 2, 0.5, 0.8)]).assign(**changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([bad().drop(columns=["votes", "reason"])], "the table of decisions lacks votes, reason; write it with these"),
        ([bad(), bad()], "case 'a' comes after 'b'; give whole cases, in order of name."),
        ([bad(case=["b", "a"])], "case 'a' comes after 'b'; give whole cases, in order of name."),
        ([bad()[:1], bad()[:1]], "case 'a' comes after 'a'; give whole cases, in order of name."),
        ([bad(label=[2, 70000])], "the table of decisions holds labels 2 to 70000, need 0 to 65535."),
        ([bad(decision="maybe")], "the table of decisions holds 'maybe': a decision is one of keep, reject, drop."),
    ],
)
def test_bad_table_is_refused_and_leaves_nothing(tmp_path, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        write_tables(tmp_path, lambda: iter(given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worst": -1}, "worst is -1: give the number of cases to draw, 0 for none."),
        ({"thresholds": {"votes": 2}}, "the thresholds lack features, organs; give the content of thresholds.json."),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        write(tmp_path, bad(), **options)


def test_full_disk_is_an_input_error_and_the_old_report_stays(tmp_path, monkeypatch):
    old = contents(write(tmp_path, bad()))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.solf.report.write.draw_organ", full)
    with pytest.raises(InputError, match=r"/qc: cannot be written \(No space left on device\); free space or correct"):
        write(
            tmp_path,
            small_table([("a", 2, 0.2, 0.95)]),
            sources={"a": "a.nii"},
            load=lambda _: MetaTensor(torch.zeros(1)),
        )
    assert contents(tmp_path / "qc") == old
    assert [path.name for path in tmp_path.iterdir()] == ["qc"]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("none"), lambda path: path.symlink_to(".")])
def test_file_or_link_in_place_of_the_report_is_left_alone(tmp_path, make):
    make(tmp_path / "qc")
    for check in (lambda: write(tmp_path, bad()), lambda: check_report(tmp_path / "qc")):
        with pytest.raises(InputError, match="qc: is not a folder, so it is not a report; move it away"):
            check()
    assert [path.name for path in tmp_path.iterdir()] == ["qc"]


def test_missing_library_is_an_input_error_before_anything_is_written(tmp_path, monkeypatch):
    check_report(tmp_path / "qc")
    monkeypatch.setitem(_LIBRARIES, "bokeh.min.js", ("bokeh", "none.js"))
    with pytest.raises(
        InputError, match=r"the report needs none\.js of the package bokeh; pip install -r requirements"
    ):
        check_report(tmp_path / "qc")


def test_folder_that_is_not_a_report_is_left_alone(tmp_path):
    (tmp_path / "qc").mkdir()
    (tmp_path / "qc" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=re.escape("qc: holds mine.txt, so it is not a report; move it away.")):
        write(tmp_path, bad())
    assert (tmp_path / "qc" / "mine.txt").exists()
