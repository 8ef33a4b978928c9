from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from tools.demo_page import Step, draw_bars, draw_label_maps, write_page


class Targets(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("src", "href")]


def test_page_shows_files_beside_it_and_nothing_from_elsewhere(tmp_path):
    picture = tmp_path / "a folder" / "dice.png"
    table = pd.DataFrame({"pretrained": [0.5], "<b>": [float("nan")]}, index=["liver"])
    draw_bars(table, picture, label="Dice")
    steps = [Step("One <1>", "a & b", ["python -m x"], [picture], {"more": picture}, table)]
    write_page(tmp_path / "index.html", steps, title="Demo")
    text = (tmp_path / "index.html").read_text()
    page = Targets()
    page.feed(text)
    assert page.found == ["a folder/dice.png"] * 3
    assert all((tmp_path / name).is_file() for name in page.found)
    for part in ("1. One &lt;1&gt;", "a &amp; b", "<pre>python -m x</pre>", "&lt;b&gt;", "0.500"):
        assert part in text
    assert "http" not in text


def test_label_maps_are_drawn_side_by_side_with_the_patients_right_on_the_left(tmp_path):
    label = np.zeros((20, 10, 30), np.uint8)
    label[15:, :, :] = 255  # on the patient's right in RAS
    nib.save(nib.Nifti1Image(label, np.diag([5, 5, 6, 1])), tmp_path / "a.nii.gz")
    draw_label_maps({"a": tmp_path / "a.nii.gz", "b": tmp_path / "a.nii.gz"}, tmp_path / "a.png")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    row = drawn[drawn.shape[0] // 2]
    white = np.flatnonzero(row > 250)
    assert len(white) > 20
    half = len(row) // 2
    for start, stop in ((0, half), (half, len(row))):
        inside = white[(white >= start) & (white < stop)] - start
        assert inside.max() < half / 2
