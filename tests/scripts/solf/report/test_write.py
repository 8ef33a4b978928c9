import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.common.errors import InputError
from scripts.solf.report.folder import ASSETS, check_report
from scripts.solf.report.review import ReviewOptions
from scripts.solf.report.write import CASES_PER_PAGE, rule_in_words, write_report
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
    """Decisions about three organs a case; a case is dropped, one organ is missing, four names are evil."""
    rng = np.random.default_rng(seed)
    names = sorted([*EVIL, *(f"case_{n:04d}" for n in range(cases - len(EVIL)))])
    case, label = np.repeat(np.array(names, dtype=object), len(ORGANS)), np.tile(list(ORGANS), cases)
    values = rng.normal([0.5, 0.8], 0.1, (len(case), 2))
    values[rng.random(values.shape) < 0.02] = np.nan
    outside = ~((values >= [0.4, 0.7]) & (values <= [0.6, 0.9]))
    votes = outside.sum(axis=1)
    decision = np.where(votes >= 2, "reject", "keep").astype(object)
    decision[(case == names[-2]) & (decision == "keep")] = "drop"
    reason = [f"sphericity {v:.2f} is <b>odd</b>" if n == 2 else "" for v, n in zip(values[:, 0], votes, strict=True)]
    table = pd.DataFrame({"case": pd.Series(case, dtype=object), "label": label})
    table["organ"] = table["label"].map(ORGANS)
    for column, name in enumerate(FEATURES):
        table[name], table[f"{name}_percentile"] = values[:, column], 100 * rng.random(len(case))
    table.loc[np.isnan(values[:, 1]), "eccentricity_percentile"] = np.nan
    table = table.assign(votes=votes, decision=decision, reason=reason)
    lost = (table["case"] == "case_0010") & (table["label"] == 3)
    table.loc[lost, [*FEATURES, *(f"{name}_percentile" for name in FEATURES)]] = np.nan
    table.loc[lost, ["votes", "decision", "reason"]] = [0, "missing", "nearly every case has it"]
    return table


def chunks(table, cases):
    groups = [group for _, group in table.groupby("case", sort=True)]
    return [pd.concat(groups[n : n + cases]) for n in range(0, len(groups), cases)]


def small_table(rows):
    """(case, label, sphericity, eccentricity) with decisions by BOUNDS."""
    table = pd.DataFrame(rows, columns=["case", "label", *FEATURES])
    outside = [(table[f] < BOUNDS[f][0]) | (table[f] > BOUNDS[f][2]) for f in FEATURES]
    votes = outside[0].astype(int) + outside[1]
    table = table.assign(organ=table["label"].map(ORGANS), sphericity_percentile=1.0, eccentricity_percentile=99.0)
    return table.assign(votes=votes, decision=np.where(votes >= 2, "reject", "keep"), reason="")


def load(path):
    return LoadLabelMapd("image")({"image": path})["image"]


def write(folder, table, *, cases_per_chunk=CASES_PER_PAGE, labels=20, order="worst", **options):
    review = ReviewOptions(labels=labels, order=order, organs=ORGANS.values())
    given = {"thresholds": THRESHOLDS, "sources": {}, "load": load, "failures": {}, "review": review, **options}
    index = write_report(folder, decisions=chunks(table, cases_per_chunk), **given)
    assert index == folder / "qc" / "index.html"
    return index.parent


def received(report, name):
    """Read a file of data without the page's code."""
    text = (report / "data" / f"{name}.js").read_text(encoding="ascii")
    found = re.fullmatch(rf'qc\.receive\("{name}","([\w+/=]+)"\);\n', text)
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def contents(report):
    return {str(file.relative_to(report)): file.read_bytes() for file in sorted(report.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def table():
    return decision_table()


@pytest.fixture(scope="module")
def report(table, tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"), table, failures={"bad": "cannot be read"})


def test_overview_counts_what_the_table_holds(report, table):
    overview, rejected = received(report, "overview"), table[table["decision"] == "reject"]
    assert overview["totals"] == {
        "cases": 150,
        "labels": 449,
        "rejected": len(rejected),
        "missing": 1,
        "cases_with_rejections": rejected["case"].nunique(),
        "dropped": 1,
    }
    for row in overview["organs"]:
        own = table[(table["label"] == row["label"]) & (table["decision"] != "missing")]
        beyond = [((own[f] < BOUNDS[f][0]) | (own[f] > BOUNDS[f][2])).sum() for f in FEATURES]
        assert (row["labels"], row["rejected"]) == (len(own), (own["decision"] == "reject").sum())
        assert (row["missing"], row["outside"]) == (int(row["label"] == 3), beyond)
    assert overview["failures"] == {"bad": "cannot be read"}
    assert overview["settings"]["epsilon_percent"] == 2
    assert overview["settings"]["review_order"] == "worst"


def test_all_rejected_labels_and_missing_organs_are_listed(report, table):
    cases, listed = received(report, "cases")["case"], received(report, "rejected")
    found = list(zip([cases[row] for row in listed["row"]], listed["label"], listed["decision"], strict=True))
    expected = table[table["decision"].isin(["reject", "missing"])]
    assert found == list(expected[["case", "label", "decision"]].itertuples(index=False, name=None))
    assert listed["reason"] == expected["reason"].tolist()
    assert [margin is None for margin in listed["margin"]] == (expected["decision"] == "missing").tolist()


def test_cases_hold_what_the_page_sorts_by(report, table):
    cases, groups = received(report, "cases"), table.groupby("case")
    assert cases["case"] == list(groups.groups)
    for name, decision in (("rejected", "reject"), ("missing", "missing")):
        assert cases[name] == [int((group["decision"] == decision).sum()) for _, group in groups]
    assert cases["dropped"] == [(group["decision"] == "drop").sum() for _, group in groups]
    assert [bool(worst) for worst in cases["worst"]] == [n > 0 for n in cases["rejected"]]


def test_pages_hold_every_label_with_four_digits(report, table):
    starts = received(report, "overview")["starts"]
    assert starts == [0, 50, 100]
    pages = [received(report, f"labels-{n:05d}") for n in range(len(starts))]
    assert [name for page in pages for name in page["case"]] == table["case"].tolist()
    assert [text for page in pages for text in page["decision"]] == table["decision"].tolist()
    for place, name in enumerate(FEATURES):
        values = [row[place] for page in pages for row in page["values"]]
        expected = [None if np.isnan(v) else float(f"{v:.4g}") for v in table[name]]
        assert values == expected


@pytest.mark.parametrize("cases_per_chunk", [1, 7, 1000])
def test_all_but_the_pages_do_not_depend_on_chunks(report, table, tmp_path, cases_per_chunk):
    other = write(tmp_path, table, cases_per_chunk=cases_per_chunk, failures={"bad": "cannot be read"})
    for name in ("review", "cases", "rejected", "distributions"):
        assert received(other, name) == received(report, name)
    keys = ("totals", "organs", "fingerprint")
    assert [received(other, "overview")[key] for key in keys] == [received(report, "overview")[key] for key in keys]


def test_fingerprint_follows_decisions_and_not_the_review(report, table, tmp_path):
    own = received(report, "overview")["fingerprint"]
    assert received(write(tmp_path / "a", table, labels=3), "overview")["fingerprint"] == own
    other = table.assign(decision=table["decision"].mask(table["decision"] == "drop", "keep"))
    assert received(write(tmp_path / "b", other), "overview")["fingerprint"] != own


def test_names_are_never_part_of_a_page(report):
    assert (report / "index.html").read_bytes() == (ASSETS / "index.html").read_bytes()
    assert all(file.read_bytes().isascii() for file in (report / "data").iterdir())


def test_page_refers_to_no_address_outside_its_folder():
    for asset in ASSETS.iterdir():
        text = asset.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|\burl\(|@import|\bfetch\(|XMLHttp|innerHTML|\beval\(", text)


def test_rule_is_described_in_words():
    assert rule_in_words(THRESHOLDS) == (
        "A label is rejected if at least 2 of 2 features (sphericity, eccentricity) are outside their thresholds. "
        "Outside are the lowest and the highest 2 % of the cohort, for each organ. "
        "The thresholds were fitted to 150 subjects."
    )
    given = {**THRESHOLDS, "covariates": {"coding": {"age": {}, "sex": {}}}}
    assert "Features are judged less what age, sex predict of them." in rule_in_words(given)
    assert "Outside are values by the rule mine." in rule_in_words({"rule": "mine", "features": ["a"], "votes": 1})
    assert "Outside" not in rule_in_words({"features": ["a"], "votes": 1})


def test_report_of_no_cases(tmp_path):
    report = write_report(
        tmp_path,
        decisions=[],
        thresholds=THRESHOLDS,
        sources={},
        load=load,
        review=ReviewOptions(),
        failures={"a": "no"},
    ).parent
    assert received(report, "overview")["totals"] == dict.fromkeys(received(report, "overview")["totals"], 0)
    assert received(report, "review") == {"items": {"case": [], "label": []}, "ordinary": {}}


def test_old_report_is_replaced_only_by_a_complete_one(tmp_path):
    old = contents(write(tmp_path, small_table([("a", 2, 0.2, 0.95)])))
    (tmp_path / ".tmp-qc-left-by-a-killed-run" / "data").mkdir(parents=True)
    with pytest.raises(InputError, match="the thresholds lack label 9; give those that the decisions were made with"):
        write(tmp_path, small_table([("a", 2, 0.2, 0.95), ("a", 9, 0.2, 0.95)]))
    assert [path.name for path in tmp_path.iterdir()] == ["qc"]
    assert contents(tmp_path / "qc") == old
    assert contents(write(tmp_path, small_table([("b", 2, 0.2, 0.95)]))) != old


def test_report_of_an_earlier_version_is_replaced(tmp_path):
    for name in ("lib", "pictures", "data"):
        (tmp_path / "qc" / name).mkdir(parents=True)
    for name in ("index.html", "core.js", "charts.js", "tables.js", "views.js", "report.css"):
        (tmp_path / "qc" / name).touch()
    report = write(tmp_path, small_table([("a", 2, 0.2, 0.95)]))
    assert not (report / "lib").exists()


def test_thresholds_without_an_entry_are_refused(tmp_path):
    with pytest.raises(InputError, match="the thresholds lack features, organs; give the content of thresholds"):
        write(tmp_path, small_table([("a", 2, 0.2, 0.95)]), thresholds={"votes": 2})


def test_full_disk_is_an_input_error_and_the_old_report_stays(tmp_path, monkeypatch):
    old = contents(write(tmp_path, small_table([("a", 2, 0.5, 0.8)])))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.solf.report.write.write_data", full)
    with pytest.raises(InputError, match=r"/qc: cannot be written \(No space left on device\); free space or correct"):
        write(tmp_path, small_table([("a", 2, 0.2, 0.95)]))
    assert contents(tmp_path / "qc") == old
    assert [path.name for path in tmp_path.iterdir()] == ["qc"]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("none"), lambda path: path.symlink_to(".")])
def test_file_or_link_in_place_of_the_report_is_left_alone(tmp_path, make):
    make(tmp_path / "qc")
    for check in (lambda: write(tmp_path, small_table([])), lambda: check_report(tmp_path / "qc")):
        with pytest.raises(InputError, match="qc: is not a folder, so it is not a report; move it away"):
            check()
    assert [path.name for path in tmp_path.iterdir()] == ["qc"]


def test_folder_that_is_not_a_report_is_left_alone(tmp_path):
    (tmp_path / "qc").mkdir()
    (tmp_path / "qc" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=re.escape("qc: holds mine.txt, so it is not a report; move it away.")):
        write(tmp_path, small_table([]))
    assert (tmp_path / "qc" / "mine.txt").exists()
