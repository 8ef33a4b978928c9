"""The QC report as a user meets it: opened from disk in headless Chromium."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.scripts.solf.report.test_pictures import kidneys
from tests.scripts.solf.report.test_write import EVIL, ORGANS, decision_table, rejected_rows, write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1300,900"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")


def shown_table():
    """The table of test_write, in which the evil names have rejected labels too."""
    table = decision_table()
    evil = table["case"].isin(EVIL) & (table["label"] != 66)
    return table.assign(
        sphericity=table["sphericity"].mask(evil, 0.05),
        votes=table["votes"].mask(evil, 2),
        decision=table["decision"].mask(evil, "reject"),
        reason=table["reason"].mask(evil, "<i onclick=window.hacked=1>odd</i>"),
    )


@pytest.fixture(scope="module")
def table():
    return shown_table()


@pytest.fixture(scope="module")
def report(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    nib.save(nib.Nifti1Image(kidneys(), np.diag([4.0, 4, 5, 1])), folder / "map.nii.gz")
    sources = dict.fromkeys(table["case"], str(folder / "map.nii.gz"))
    return write(folder, table, sources=sources, worst=8)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
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
    chromium.get((report / "index.html").as_uri())
    wait(chromium, "document.querySelector('#organ-chart .bk-Figure') && document.querySelector('#organ-table td')")
    yield chromium
    loud = [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert loud == []
    assert {address.split(":")[0] for address in addresses(chromium)} <= {"file", "data"}
    assert chromium.execute_script("return window.hacked") is None
    assert chromium.find_elements(By.CSS_SELECTOR, "main b[onclick], main i[onclick], main img[onerror]") == []


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


def header(browser, table, text):
    cells = browser.find_elements(By.CSS_SELECTOR, f"{table} thead th")
    return next(cell for cell in cells if cell.text == text)


def open_cases(browser):
    go(browser, "cases", "document.querySelector('#case-table td a')")


def shown_order(browser):
    return browser.execute_script(
        "return document.getElementById('organ-chart').bokehView.model.renderers[0].data_source.data.organ"
    )


def test_overview_is_sorted_by_select_and_by_key_and_the_chart_follows(browser, table):
    rates = rejected_rows(table)["label"].value_counts() / table["label"].value_counts()
    expected = [ORGANS[label].replace("_", " ") for label in rates.sort_values(ascending=False).index]
    assert column(browser, "#organ-table", 2) == shown_order(browser) == expected
    Select(browser.find_element(By.ID, "organ-order")).select_by_visible_text("organ")
    wait(browser, "document.querySelector('#organ-table td:nth-child(2)').textContent === 'kidney left'")
    labels = header(browser, "#organ-table", "id")
    labels.find_element(By.CSS_SELECTOR, "[tabindex]").send_keys(Keys.ENTER)
    wait(browser, "document.querySelector('#organ-table td').textContent === '66'")
    wait(browser, "document.getElementById('organ-chart').bokehView.model.x_range.factors[0] === 'muscle'")
    assert shown_order(browser) == ["muscle", "kidney left", "kidney right"]


def test_number_of_rejected_labels_leads_to_their_cases(browser, table):
    browser.find_element(By.CSS_SELECTOR, "#organ-table a[href='#cases/kidney left']").click()
    wait(browser, "document.querySelector('#case-table td a')")
    found = rejected_rows(table).query("label == 3")["case"].nunique()
    assert browser.find_element(By.ID, "case-count").text == f"{found} of 150 cases"


def test_distributions_draw_the_chosen_organ_and_feature(browser):
    go(browser, "distributions", "document.querySelectorAll('#histograms .bk-Figure').length === 2")
    Select(browser.find_element(By.ID, "feature")).select_by_visible_text("eccentricity")
    wait(browser, "document.querySelectorAll('#histograms .bk-Figure').length === 1")
    Select(browser.find_element(By.ID, "organ")).select_by_value("66")
    wait(browser, "document.querySelector('#histograms .bk-Figure')")
    browser.execute_script("location.hash = '#distributions/3'")
    wait(browser, "document.getElementById('organ').value === '3'")
    assert "eccentricity: low 0.7, median 0.8, high 0.9" in browser.find_element(By.ID, "histograms").text


def test_cases_are_sorted_and_filtered(browser, table):
    open_cases(browser)
    names, rejected = sorted(table["case"].unique()), rejected_rows(table)
    most = rejected.groupby("case").size()
    assert column(browser, "#case-table", 3) == [str(n) for n in sorted(most, reverse=True)[:25]]
    header(browser, "#case-table", "case").click()
    wait(browser, f"document.querySelector('#case-table td').textContent === {names[0]!r}")
    assert column(browser, "#case-table", 1) == names[:25]
    header(browser, "#case-table", "case").click()
    wait(browser, f"document.querySelector('#case-table td').textContent === {names[-1]!r}")
    assert column(browser, "#case-table", 1) == names[:-26:-1]
    browser.find_element(By.ID, "case-text").send_keys("Kidney_Left")
    found = rejected[rejected["label"] == 3]["case"].nunique()
    wait(browser, f"document.getElementById('case-count').value === '{found} of 150 cases'")
    browser.find_element(By.ID, "case-text").clear()
    browser.find_element(By.ID, "case-text").send_keys("case 000")
    wait(browser, "document.getElementById('case-count').value === '10 of 150 cases'")


@pytest.mark.parametrize(
    ("choice", "fits"),
    [
        ("with rejected labels", lambda group: ((group["votes"] >= 2) & (group["decision"] != "keep")).any()),
        ("nothing rejected", lambda group: (group["decision"] == "keep").all()),
        ("dropped", lambda group: (group["decision"] == "drop").any()),
    ],
)
def test_decisions_of_cases_are_filtered(browser, table, choice, fits):
    open_cases(browser)
    Select(browser.find_element(By.ID, "case-decision")).select_by_visible_text(choice)
    expected = sum(fits(group) for _, group in table.groupby("case"))
    assert 0 < expected < 150
    wait(browser, f"document.getElementById('case-count').value === '{expected} of 150 cases'")


def test_case_opens_with_its_picture_and_its_labels(browser, table):
    open_cases(browser)
    browser.find_element(By.CSS_SELECTOR, "#case-table td a").click()
    wait(browser, "document.querySelector('#case-picture img')?.naturalWidth > 300")
    name = browser.find_element(By.ID, "case-name").get_attribute("textContent")
    own = table[table["case"] == name]
    assert len(own) == 3
    shown = {
        int(row): float(value) for row, value in zip(*(column(browser, "#label-table", n) for n in (1, 6)), strict=True)
    }
    assert shown == {row.label: float(f"{row.sphericity:.4g}") for row in own.itertuples()}
    assert sorted(column(browser, "#label-table", 3)) == sorted(own["decision"])
    Select(browser.find_element(By.ID, "label-decision")).select_by_visible_text("keep")
    kept = list(own["organ"][own["decision"] == "keep"])
    assert column(browser, "#label-table", 2) == [organ.replace("_", " ") for organ in kept]
    Select(browser.find_element(By.ID, "label-decision")).select_by_visible_text("all")
    browser.find_element(By.ID, "label-text").send_keys("kidney")
    assert len(column(browser, "#label-table", 2)) == 2
    browser.back()
    wait(browser, "!document.getElementById('view-cases').hidden")


def test_undefined_feature_is_a_dash(browser, table):
    row = table[table["sphericity"].isna()].iloc[0]
    place = sorted(table["case"].unique()).index(row["case"])
    browser.execute_script(f"location.hash = '#case/{place}'")
    wait(browser, "document.querySelector('#label-table td')")
    shown = dict(zip(column(browser, "#label-table", 1), column(browser, "#label-table", 6), strict=True))
    assert shown[str(row["label"])] == "–"


def test_worst_cases_show_pictures_and_reasons(browser, table):
    go(browser, "worst", "document.querySelector('#worst-list img')?.naturalWidth > 300")
    articles = browser.find_elements(By.CSS_SELECTOR, "#worst-list article")
    assert len(articles) == 8
    assert f"{rejected_rows(table).groupby('case').size().max()} of 3 labels rejected" in articles[0].text
    assert articles[0].find_element(By.TAG_NAME, "img").get_attribute("alt").startswith("Axial, coronal and sagittal")
    texts = browser.find_element(By.ID, "worst-list").text
    assert "<i onclick=window.hacked=1>odd</i>" in texts


@pytest.mark.parametrize("name", EVIL)
def test_name_of_a_case_is_shown_and_not_run(browser, table, name):
    open_cases(browser)
    browser.execute_script("document.getElementById('case-text').value = arguments[0]; qc.views.caseTable.draw()", name)
    wait(browser, "document.querySelectorAll('#case-table td a').length === 1")
    link = browser.find_element(By.CSS_SELECTOR, "#case-table td a")
    assert link.get_attribute("textContent") == name
    link.click()
    wait(browser, "document.querySelector('#label-table td')")
    assert browser.find_element(By.ID, "case-name").get_attribute("textContent") == name
    assert "<i onclick=window.hacked=1>odd</i>" in column(browser, "#label-table", 5)
    browser.find_element(By.ID, "label-text").send_keys("kidney")
    assert len(column(browser, "#label-table", 1)) == 2


def data_files(browser):
    return {address.rsplit("/", 1)[1] for address in addresses(browser) if "/data/" in address}


def test_page_of_labels_is_loaded_when_it_is_needed(browser):
    assert data_files(browser) == {"overview.js"}
    open_cases(browser)
    assert data_files(browser) == {"cases.js"}
    browser.execute_script("location.hash = '#case/70'")
    wait(browser, "document.querySelector('#label-table td')")
    assert data_files(browser) == {"labels-00001.js"}


def test_dark_mode_follows_the_system(browser):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    background = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(background)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        wait(browser, "document.documentElement.classList.contains('dark')")
        assert browser.execute_script(background) != before
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_missing_file_is_named(chromium, report, tmp_path):
    copy = shutil.copytree(report, tmp_path / "qc")
    (copy / "data" / "labels-00000.js").unlink()
    chromium.get(f"{(copy / 'index.html').as_uri()}#case/3")
    wait(chromium, "!document.getElementById('problem').hidden")
    text = chromium.find_element(By.ID, "problem").text
    assert text == "data/labels-00000.js cannot be read; copy the whole folder of the report."
