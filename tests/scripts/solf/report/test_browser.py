"""The QC report as a user meets it: opened from disk in headless Chromium.

The tests are skipped where there is none, unless REQUIRE_CHROMIUM is set: then they fail.
"""

import csv
import json
import os
import shutil
from itertools import pairwise

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from scripts.solf.report.drift import COLUMNS
from scripts.solf.report.review import ReviewOptions
from tests.scripts.solf.report.test_slices import AFFINE, kidneys
from tests.scripts.solf.report.test_write import EVIL, ORGANS, decision_table, received, small_table, write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,900"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("REQUIRE_CHROMIUM"),
    reason="no chromium, chromium-browser or google-chrome is installed",
)
REVIEWED = 30
HEAD = "case,label,organ,verdict,reviewer,reviewed_at\n"
EVIL_REASON = "<i onclick=window.hacked=1>odd</i>"
EVIL_COMMENT = '=1+1,"quoted"\té <img src=x onerror=window.hacked=1>'


def shown_table():
    """The table of test_write, in which the evil names have rejected labels too."""
    table = decision_table()
    evil = table["case"].isin(EVIL) & (table["label"] != 66)
    changed = {"sphericity": 0.05, "eccentricity": 0.99, "votes": 2, "decision": "reject", "reason": EVIL_REASON}
    return table.assign(**{name: table[name].mask(evil, value) for name, value in changed.items()})


@pytest.fixture(scope="module")
def table():
    return shown_table()


@pytest.fixture(scope="module")
def report(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    (folder / "images").mkdir()
    nib.save(nib.Nifti1Image(kidneys(), AFFINE), folder / "map.nii.gz")
    names = sorted(table["case"].unique())
    image = np.where(kidneys() == 2, 40, -1000).astype(np.int16)
    for name in names[20:]:
        if name.startswith("case"):
            nib.save(nib.Nifti1Image(image, AFFINE), folder / "images" / f"{name}.nii.gz")
    options = {"organs": ORGANS.values(), "cases": names, "images": folder / "images", "labels": REVIEWED}
    sources = dict.fromkeys(names, str(folder / "map.nii.gz"))
    failures = {"<b>bad</b>": "/data/<img src=x onerror=window.hacked=1>.nii: cannot be read"}
    return write(folder, table, sources=sources, review=ReviewOptions(**options), failures=failures)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    assert CHROMIUM, "REQUIRE_CHROMIUM is set, and neither chromium, chromium-browser nor google-chrome is installed"
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = shutil.which("chromedriver")
    browser = Chrome(options=options, service=ChromeService(driver) if driver else None)
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, report):
    """The report, freshly opened; what a test leaves in the console fails it, and so does any foreign address."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    addresses(chromium)
    start(chromium, report)
    chromium.execute_script("localStorage.clear()")
    start(chromium, report)
    yield chromium
    loud = [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert loud == []
    assert {address.split(":")[0] for address in addresses(chromium)} <= {"file", "data", "blob"}
    assert chromium.execute_script("return window.hacked") is None
    assert chromium.find_elements(By.CSS_SELECTOR, "main b[onclick], main i[onclick], main img[onerror]") == []


def start(browser, report, part=""):
    browser.get("about:blank")
    browser.get((report / "index.html").as_uri() + part)
    wait(browser, "document.querySelector('#organ-table td')")


def addresses(browser):
    """What was asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}


def wait(browser, condition):
    WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda b: b.execute_script(f"return !!({condition})"))


def go(browser, part, condition):
    browser.find_element(By.CSS_SELECTOR, f'nav a[href="#{part}"]').click()
    wait(browser, condition)


def column(browser, table, number):
    """Texts of a column."""
    cells = browser.find_elements(By.CSS_SELECTOR, f"{table} tbody td:nth-child({number})")
    return [cell.get_attribute("textContent") for cell in cells]


def text(browser, place):
    return browser.find_element(By.ID, place).get_attribute("textContent")


def sort(browser, table, title):
    heads = browser.find_elements(By.CSS_SELECTOR, f"{table} th button")
    next(head for head in heads if head.text == title).click()


def press(browser, *keys):
    for key in keys:
        browser.find_element(By.TAG_NAME, "body").send_keys(key)


def open_review(browser):
    go(browser, "review", "qc.review.viewers?.[0].data")


def test_overview_shows_counts_settings_and_failed_cases(browser, table):
    rates = (table["decision"] == "reject").groupby(table["label"]).sum() / (
        (table["decision"] != "missing").groupby(table["label"]).sum()
    )
    expected = [ORGANS[label].replace("_", " ") for label in rates.sort_values(ascending=False).index]
    assert column(browser, "#organ-table", 2) == expected
    sort(browser, "#organ-table", "id")
    assert sorted(column(browser, "#organ-table", 1), key=int, reverse=True) == column(browser, "#organ-table", 1)
    assert column(browser, "#failed-table", 1) == ["<b>bad</b>"]
    assert "<img src=x" in column(browser, "#failed-table", 2)[0]
    assert "epsilon percent" in text(browser, "settings")
    assert received_tile(browser, "missing organs") == "1"


def received_tile(browser, name):
    tiles = browser.find_elements(By.CSS_SELECTOR, "#totals div")
    return next(tile.find_element(By.TAG_NAME, "dd").text for tile in tiles if tile.text.startswith(name))


def test_all_rejected_labels_are_listed_in_pages(browser, table):
    rejected = table[table["decision"].isin(["reject", "missing"])]
    go(browser, "rejected", "document.querySelector('#rejected-table td')")
    assert f"of {len(rejected)}" in text(browser, "rejected-table")
    assert EVIL_REASON in column(browser, "#rejected-table", 6)
    Select(browser.find_element(By.ID, "rejected-decision")).select_by_value("missing")
    assert column(browser, "#rejected-table", 1) == ["case_0010"]
    Select(browser.find_element(By.ID, "rejected-decision")).select_by_value("")
    Select(browser.find_element(By.ID, "rejected-organ")).select_by_value("3")
    found = rejected[rejected["label"] == 3]
    wait(browser, f"document.querySelector('#rejected-table output').value.endsWith('of {len(found)}')")
    browser.find_element(By.ID, "rejected-case").send_keys("onerror")
    assert column(browser, "#rejected-table", 1) == [EVIL[0]]


def test_list_turns_its_pages(browser, table):
    go(browser, "cases", "document.querySelector('#case-table td')")
    sort(browser, "#case-table", "case")
    names = sorted(table["case"].unique())
    shown = column(browser, "#case-table", 1)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#case-table .pages button")
    assert not buttons[0].is_enabled()
    for _ in range(2):
        buttons[1].click()
        shown += column(browser, "#case-table", 1)
    assert sorted(shown) == names
    assert not buttons[1].is_enabled()


def test_labels_with_a_picture_lead_to_it_and_others_say_so(browser, report):
    go(browser, "rejected", "document.querySelector('#rejected-table td')")
    assert set(column(browser, "#rejected-table", 4)) == {"look", "no picture"}
    browser.find_element(By.CSS_SELECTOR, "#rejected-table a[href^='#review/']").click()
    wait(browser, "qc.review.viewers?.[0].data")
    review = received(report, "review")["items"]
    assert text(browser, "review-title") == f"{ORGANS[review['label'][0]].replace('_', ' ')} · {review['case'][0]}"


@pytest.mark.parametrize(
    ("choice", "fits"),
    [
        ("with rejected labels", lambda group: (group["decision"] == "reject").any()),
        ("with missing organs", lambda group: (group["decision"] == "missing").any()),
        ("nothing rejected", lambda group: not group["decision"].isin(["reject", "drop"]).any()),
        ("dropped", lambda group: (group["decision"] == "drop").any()),
    ],
)
def test_decisions_of_cases_are_filtered(browser, table, choice, fits):
    go(browser, "cases", "document.querySelector('#case-table td')")
    Select(browser.find_element(By.ID, "case-decision")).select_by_visible_text(choice)
    expected = sum(fits(group) for _, group in table.groupby("case"))
    assert 0 < expected < 150
    assert text(browser, "case-table").count("look") == 0
    wait(browser, f"document.querySelector('#case-table output').value.endsWith('of {expected}')")


@pytest.mark.parametrize("name", EVIL)
def test_name_of_a_case_is_shown_and_not_run(browser, table, name):
    row = sorted(table["case"].unique()).index(name)
    browser.execute_script(f"location.hash = '#case/{row}'")
    wait(browser, "document.querySelector('#label-table td')")
    assert text(browser, "case-name") == name
    own = table[table["case"] == name]
    assert sorted(column(browser, "#label-table", 2)) == sorted(own["decision"])
    assert EVIL_REASON in text(browser, "label-table")
    assert "0.05" in text(browser, "label-table")


def test_page_of_labels_is_loaded_when_it_is_needed(browser):
    files = {address.rsplit("/", 1)[1] for address in addresses(browser) if "/data/" in address}
    assert files == {"overview.js"}
    browser.execute_script("location.hash = '#case/70'")
    wait(browser, "document.querySelector('#label-table td')")
    files = {address.rsplit("/", 1)[1] for address in addresses(browser) if "/data/" in address}
    assert files == {"labels-00001.js", "cases.js", "review.js"}


def test_histograms_show_thresholds_of_the_chosen_organ(browser):
    browser.execute_script("location.hash = '#organs/3'")
    wait(browser, "document.querySelectorAll('#histograms svg').length === 2")
    assert browser.find_element(By.ID, "organ").get_attribute("value") == "3"
    marks = [mark.text for mark in browser.find_elements(By.CSS_SELECTOR, "#histograms svg text")]
    assert marks == ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]
    assert browser.find_elements(By.CSS_SELECTOR, "#histograms rect.rejected")


@pytest.mark.parametrize("width", [800, 1280])
@pytest.mark.parametrize("part", ["overview", "organs/2", "rejected", "cases", "case/3", "review"])
def test_nothing_is_wider_than_the_page(browser, part, width):
    browser.set_window_size(width, 900)
    try:
        browser.execute_script(f"location.hash = '#{part}'")
        wait(browser, f"!document.getElementById('view-{part.split('/')[0]}').hidden")
        if part == "review":
            wait(browser, "qc.review.viewers?.[0].data")
        wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wide) <= 0
        tables = "return [...document.querySelectorAll('.scroll')].map((t) => t.scrollWidth - t.clientWidth)"
        assert max(browser.execute_script(tables), default=0) <= 0
    finally:
        browser.set_window_size(1280, 900)


def test_158_long_names_of_organs_do_not_overlap(chromium, tmp_path):
    table = small_table([("a", 2, 0.2, 0.95), ("b", 2, 0.5, 0.8)])
    organs = {str(n): {"organ": f"ctx_region_{n}_of_the_left_hemisphere", "subjects": 50} for n in range(1, 159)}
    thresholds = {"features": ["sphericity", "eccentricity"], "votes": 2, "organs": organs}
    start(chromium, write(tmp_path, table, thresholds=thresholds))
    boxes = "[...document.querySelectorAll('#organ-table tr')].map((row) => row.getBoundingClientRect().toJSON())"
    rows = chromium.execute_script(f"return {boxes}")
    assert len(rows) == 159
    assert all(above["bottom"] <= below["top"] + 0.5 for above, below in pairwise(rows))


def test_keys_turn_slices_and_planes_and_the_ordinary_organ_follows(browser):
    open_review(browser)
    at = "return qc.review.viewers.map((viewer) => [...viewer.at])"
    before = browser.execute_script(at)
    press(browser, Keys.ARROW_UP, Keys.ARROW_UP)
    assert browser.execute_script(at) == [[x, y, z + 2] for x, y, z in before]
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)  # coronal
    assert browser.execute_script(at) == [[x, y - 1, z + 2] for x, y, z in before]
    canvas = browser.find_element(By.CSS_SELECTOR, "#shown canvas")
    browser.execute_script("arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: 1, cancelable: true}))", canvas)
    assert browser.execute_script(at)[0][2] == before[0][2] + 1
    press(browser, "o")
    assert browser.execute_script("return qc.review.viewers.map((viewer) => viewer.labels)") == [False, False]


def test_surface_is_seen_from_the_front_and_turns_by_dragging(browser):
    """Its outline has the extent of the label along x and z, then, turned by 90 degrees, along y and z."""
    open_review(browser)
    press(browser, "d")
    extents = """
        const [solid, viewer] = [qc.review.solids[0], qc.review.viewers[0]];
        const {width} = solid.canvas, {size, mm} = viewer.data, box = (of) => Math.max(...of) - Math.min(...of) + 1;
        const copy = qc.element('canvas', {width, height: width}).getContext('2d', {willReadFrequently: true});
        copy.drawImage(solid.canvas, 0, 0);
        const seen = copy.getImageData(0, 0, width, width).data;
        const inside = [...Array(width * width).keys()].filter((n) => seen[4 * n + 3]);
        const drawn = [box(inside.map((n) => n % width)), box(inside.map((n) => Math.floor(n / width)))];
        const own = [...viewer.map.keys()].filter((n) => viewer.map[n] === 1);
        const places = [(n) => n % size[0], (n) => Math.floor(n / size[0]) % size[1],
          (n) => Math.floor(n / size[0] / size[1])];
        const label = places.map((place, axis) => box(own.map(place)) * mm[axis]);
        return [drawn.map((pixels) => pixels * 2 * solid.radius_mm / width), label];"""
    seen, (x, y, z) = browser.execute_script(extents)
    assert seen == pytest.approx([x, z], rel=0.1)
    before = browser.execute_script("return qc.review.solids.map((solid) => solid.canvas.toDataURL())")
    canvas = browser.execute_script("return qc.review.solids[0].canvas")
    ActionChains(browser).drag_and_drop_by_offset(canvas, 60, 20).perform()
    assert browser.execute_script("return qc.review.angles") == pytest.approx([0.6, 0.2])
    browser.execute_script("qc.review.rotate(Math.PI / 2 - qc.review.angles[0], -qc.review.angles[1])")
    seen, _ = browser.execute_script(extents)
    assert seen == pytest.approx([y, z], rel=0.1)
    after = browser.execute_script("return qc.review.solids.map((solid) => solid.canvas.toDataURL())")
    assert before[0] != after[0]
    assert before[1] != after[1]
    press(browser, "d")
    assert browser.execute_script("return qc.review.solids.map((solid) => solid.figure.hidden)") == [True, True]


def test_slice_shows_label_outline_and_image(browser, report):
    review = received(report, "review")
    place = next(
        n for n, one in enumerate(review["items"]["picture"]) if review["items"]["label"][n] == 2 and len(one) == 1
    )
    browser.execute_script(f"location.hash = '#review/{place}'")
    wait(browser, f"qc.review.viewers?.[0].data && qc.review.at === {place} && qc.review.viewers[0].image")
    pixels = """
        const canvas = document.querySelector('#shown canvas');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return Array.from({length: data.length / 4}, (_, n) => [data[4 * n], data[4 * n + 1], data[4 * n + 2]]);"""
    found = np.array(browser.execute_script(pixels))
    assert (np.abs(found - [255, 176, 0]).max(axis=1) < 30).sum() > 100  # the outline
    inside = found[(found[:, 0] > 110) & (found[:, 2] > 60) & (found[:, 2] < 140)]
    assert len(inside) > 300  # grey below amber
    browser.execute_script("location.hash = '#review/0'")


def as_reviewer(browser, name):
    browser.execute_script("document.getElementById('rename').click()")
    field = browser.find_element(By.ID, "name")
    field.clear()
    field.send_keys(name, Keys.ENTER)
    wait(browser, "!document.getElementById('name-dialog').open")


def downloaded(browser, folder, button, name):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.find_element(By.ID, button).click()
    WebDriverWait(browser, 15, poll_frequency=0.05).until(lambda _: (folder / name).is_file())
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_thirty_labels_are_reviewed_by_keys_and_exported(browser, report, tmp_path):
    items = received(report, "review")["items"]
    open_review(browser)
    press(browser, "a")
    browser.find_element(By.ID, "name").send_keys('Rita "R", <b>Ω</b>', Keys.ENTER)
    wait(browser, "qc.review.at === 1")
    for n in range(1, REVIEWED):
        press(browser, "r" if n % 3 == 0 else "a")
    assert text(browser, "review-progress") == f"{REVIEWED} of {REVIEWED} reviewed"
    press(browser, "c")
    browser.find_element(By.ID, "comment").send_keys(EVIL_COMMENT.replace("\t", ""), Keys.ENTER)
    start(browser, report, "#review")
    wait(browser, "qc.review.viewers?.[0].data")
    assert text(browser, "review-progress") == f"{REVIEWED} of {REVIEWED} reviewed"
    assert text(browser, "reviewer") == 'Reviewer: Rita "R", <b>Ω</b>'
    rows = downloaded(browser, tmp_path, "export", "verdicts_Rita_R_b_Ω_b_.csv")
    assert [(row["case"], int(row["label"])) for row in rows] == list(zip(items["case"], items["label"], strict=True))
    assert [row["verdict"] for row in rows] == ["reject" if n and n % 3 == 0 else "accept" for n in range(REVIEWED)]
    assert {row["reviewer"] for row in rows} == {'Rita "R", <b>Ω</b>'}
    assert all(len(row["reviewed_at"]) == 20 and row["reviewed_at"].endswith("Z") for row in rows)
    assert rows[-1]["comment"] == EVIL_COMMENT.replace("\t", "")
    assert list(rows[0]) == ["case", "label", "organ", "verdict", "reviewer", "reviewed_at", "comment"]


def test_back_skip_and_a_second_verdict(browser, report):
    open_review(browser)
    as_reviewer(browser, "A")
    press(browser, "a", "s", "b", "b")
    assert browser.execute_script("return qc.review.at") == 0
    press(browser, "r")
    given = browser.execute_script("return qc.verdicts.all().map((row) => row.verdict)")
    assert given == ["reject"]
    browser.find_element(By.ID, "review-open").click()
    assert browser.execute_script("return qc.review.list.length") == REVIEWED - 1


def verdict_file(path, items, reviewer, verdicts, **changes):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        names = ["case", "label", "organ", "verdict", "reviewer", "reviewed_at", "comment"]
        writer = csv.DictWriter(file, names, lineterminator="\r\n")
        writer.writeheader()
        for case, label, verdict in zip(items["case"], items["label"], verdicts, strict=False):
            row = {"case": case, "label": label, "organ": "", "verdict": verdict, "reviewer": reviewer}
            writer.writerow({**row, "reviewed_at": "2026-11-21T20:15:00Z", "comment": "a\nb", **changes})
    return str(path)


def test_files_of_two_reviewers_merge_and_kappa_is_shown(browser, report, tmp_path):
    items = received(report, "review")["items"]
    rng = np.random.default_rng(0)
    first = rng.choice(["accept", "reject"], REVIEWED)
    second = np.where(rng.random(REVIEWED) < 0.3, rng.choice(["accept", "reject"], REVIEWED), first)
    files = [verdict_file(tmp_path / f"{n}.csv", items, n, v) for n, v in (("Ada", first), ("<b>Bo", second))]
    open_review(browser)
    browser.find_element(By.ID, "merge").send_keys("\n".join(files))
    wait(browser, "document.querySelectorAll('#agreement td').length === 4")
    same = np.mean(first == second)
    chance = sum(np.mean(first == v) * np.mean(second == v) for v in ("accept", "reject"))
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#agreement td")]
    assert cells[:2] == ["<b>Bo, Ada", str(REVIEWED)]
    assert float(cells[2].split()[0]) == pytest.approx(100 * same, abs=0.06)
    assert float(cells[3]) == pytest.approx((same - chance) / (1 - chance), abs=0.006)
    start(browser, report, "#review")
    wait(browser, "document.querySelectorAll('#agreement td').length === 4")
    rows = downloaded(browser, tmp_path, "export-all", "verdicts_all.csv")
    assert len(rows) == 2 * REVIEWED
    assert {row["comment"] for row in rows} == {"a\nb"}
    assert {row["case"] for row in rows} == set(items["case"])


def test_later_verdict_of_the_same_reviewer_counts(browser, report, tmp_path):
    items = received(report, "review")["items"]
    late = verdict_file(tmp_path / "late.csv", items, "A", ["reject"], reviewed_at="2026-11-22T00:00:00Z")
    early = verdict_file(tmp_path / "early.csv", items, "A", ["accept"])
    open_review(browser)
    for file in (late, early):
        browser.find_element(By.ID, "merge").send_keys(file)
        wait(browser, "document.getElementById('merged').textContent.includes('1 verdicts')")
    assert browser.execute_script("return qc.verdicts.all().map((row) => row.verdict)") == ["reject"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case,label\na,2\n", "lacks the column organ, verdict, reviewer, reviewed_at"),
        (
            "case,label,organ,verdict,reviewer,reviewed_at\na,2,,good,A,2026-11-21T20:15:00Z\n",
            "row 2: verdict is “good”",
        ),
        ("case,label,organ,verdict,reviewer,reviewed_at\na,x,,accept,A,2026-11-21T20:15:00Z\n", "row 2: label is “x”"),
        (
            "case,label,organ,verdict,reviewer,reviewed_at\na,2,,accept,A,yesterday\n",
            "row 2: reviewed_at is “yesterday”",
        ),
        ('"case,label', "is not CSV"),
        ("", "lacks the column case"),
    ],
)
def test_file_that_holds_no_verdicts_is_named(browser, tmp_path, content, message):
    (tmp_path / "bad.csv").write_text(content, encoding="utf-8")
    open_review(browser)
    browser.find_element(By.ID, "merge").send_keys(str(tmp_path / "bad.csv"))
    wait(browser, "document.getElementById('merged').textContent")
    assert text(browser, "merged").startswith(f"bad.csv: {message}")
    assert text(browser, "merged").endswith("nothing of it was taken.")
    assert browser.execute_script("return qc.verdicts.all().length") == 0


def test_order_organ_and_blind_review(browser, report):
    items = received(report, "review")["items"]
    open_review(browser)
    Select(browser.find_element(By.ID, "review-order")).select_by_value("random")
    shuffled = browser.execute_script("return qc.review.list.map((item) => item.case)")
    assert sorted(shuffled) == sorted(items["case"])
    assert shuffled != items["case"]
    Select(browser.find_element(By.ID, "review-organ")).select_by_value("kidney_left")
    assert set(browser.execute_script("return qc.review.list.map((item) => item.label)")) == {3}
    assert "Rule:" in text(browser, "review-about")
    browser.find_element(By.ID, "review-blind").click()
    assert "Rule:" not in text(browser, "review-about")


def test_missing_storage_is_said(browser, report):
    open_review(browser)
    assert not browser.find_element(By.ID, "storage").is_displayed()
    browser.execute_script("Storage.prototype.setItem = () => { throw new Error('full'); }; qc.verdicts.save()")
    assert browser.find_element(By.ID, "storage").is_displayed()


def test_image_that_is_missing_is_said(browser, report):
    review = received(report, "review")["items"]
    place = next(n for n, one in enumerate(review["picture"]) if "without_image" in one)
    browser.execute_script(f"location.hash = '#review/{place}'")
    wait(browser, f"qc.review.viewers?.[0].data && qc.review.at === {place}")
    assert "No image: no image has the name of this case." in text(browser, "review-about")


def test_missing_file_is_named(chromium, report, tmp_path):
    copy = shutil.copytree(report, tmp_path / "qc")
    (copy / "data" / "labels-00000.js").unlink()
    chromium.get(f"{(copy / 'index.html').as_uri()}#case/3")
    wait(chromium, "!document.getElementById('problem').hidden")
    assert text(chromium, "problem") == "data/labels-00000.js cannot be read; copy the whole folder of the report."


def test_drift_is_shown_where_there_is_some(chromium, report, table, tmp_path):
    chromium.get_log("browser")  # of the test before
    start(chromium, report)
    assert not chromium.find_element(By.ID, "drift").is_displayed()
    drift = pd.DataFrame([["site", "<b>B</b>", 2, "kidney_right", "sphericity", 40, 1.5, 0.4]], columns=COLUMNS)
    start(chromium, write(tmp_path, table, drift=drift))
    wait(chromium, "document.getElementById('drift-picture').naturalWidth > 100")
    items = [item.text for item in chromium.find_elements(By.CSS_SELECTOR, "#drift-largest li")]
    assert items[0] == "1 of 1 medians differ from the cohort's by more than chance."
    assert items[1] == "site <b>B</b>: kidney right, sphericity: +1.50 spreads (40 people; chance alone: up to 0.40)"
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
