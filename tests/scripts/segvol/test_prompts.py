import json
import logging

import pytest

from scripts.common.errors import InputError
from scripts.segvol.prompt_files import Prompt, read_organs, read_prompts
from scripts.segvol.prompts import PromptBook
from tests.conftest import ROOT

ROWS = [
    {"case": "p1", "text": "liver"},
    {
        "case": "p1",
        "name": "cyst",
        "points": [[1, 2, 3], [4, 5, 6]],
        "negative": [[7, 8, 9]],
        "box": [0, 0, 0, 5, 5, 5],
    },
    {"case": "p2", "text": "liver", "box": [-10.5, 0, 0, 5, 5, 5], "space": "LPS"},
]
CSV = """case,name,text,points,negative,box,space
p1,,liver,,,,
p1,cyst,,1 2 3; 4 5 6,7 8 9,0 0 0 5 5 5,
p2,,liver,,,-10.5 0 0 5 5 5,LPS
"""


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_json_and_csv_say_the_same(tmp_path):
    found = read_prompts(written(tmp_path / "p.json", ROWS))
    assert found == read_prompts(written(tmp_path / "p.csv", CSV))
    assert found[1] == Prompt("cyst", "p1", "", ((1, 2, 3), (4, 5, 6)), ((7, 8, 9),), (0, 0, 0, 5, 5, 5))
    assert [prompt.kind for prompt in found] == ["text", "point+box", "box+text"]


def test_same_name_is_the_same_class_in_all_cases(tmp_path):
    book = PromptBook(written(tmp_path / "p.json", ROWS))
    assert book.class_names == {1: "liver", 2: "cyst"}
    assert [(p.name, p.class_id) for p in book.of("p1")] == [("liver", 1), ("cyst", 2)]
    assert [(p.name, p.class_id, p.space) for p in book.of("p2")] == [("liver", 1, "LPS")]


def test_given_class_ids_are_kept_and_others_numbered_around_them(tmp_path):
    rows = [{"text": "liver", "class_id": 2}, {"text": "spleen"}, {"text": "aorta"}]
    book = PromptBook(written(tmp_path / "p.json", rows))
    assert book.class_names == {2: "liver", 1: "spleen", 3: "aorta"}


def test_command_line_gives_prompts_of_every_case():
    book = PromptBook(text=["liver", "left kidney"])
    assert [prompt.text for prompt in book.of("any")] == ["liver", "left kidney"]
    (prompt,) = PromptBook(text="liver", point=[1, 2, 3], box=[0, 0, 0, 1, 1, 1], space="RAS").of("any")
    assert (prompt.points, prompt.box, prompt.space, prompt.kind) == (
        ((1, 2, 3),),
        (0, 0, 0, 1, 1, 1),
        "RAS",
        "point+box+text",
    )
    assert PromptBook(point=[1, 2, 3]).class_names == {1: "prompt 1"}


def test_lists_of_organs_have_the_ids_of_the_list(tmp_path):
    assert PromptBook(organs="all").class_names[3] == "left kidney"
    metadata = ROOT / "bundles" / "swin_bob_btcv" / "configs" / "metadata.json"
    assert PromptBook(organs=metadata).class_names[6] == "liver"
    assert read_organs(written(tmp_path / "o.json", {"0": "background", "7": "liver"})) == {7: "liver"}
    assert read_organs(written(tmp_path / "d.json", {"labels": {"0": "background", "1": "liver"}})) == {1: "liver"}


def test_cases_without_a_prompt_are_left_out(tmp_path, caplog):
    book = PromptBook(written(tmp_path / "p.json", ROWS))
    assert book.prompted([{"case": name} for name in ("p1", "p2", "p3")]) == [{"case": "p1"}, {"case": "p2"}]
    assert "1 cases have no prompt and are left out: p3" in caplog.text


def test_prompts_of_a_case_that_is_not_there_are_refused(tmp_path):
    book = PromptBook(written(tmp_path / "p.json", ROWS))
    with pytest.raises(InputError, match=r"p.json: has prompts for the case 'p2', which the input lacks; .*'p22'"):
        book.prompted([{"case": "p1"}, {"case": "p22"}])


def test_unknown_texts_are_used_and_the_nearest_organ_is_offered(caplog):
    caplog.set_level(logging.WARNING)
    assert PromptBook(text=["livr", "Left Kidney", "postcava"]).prompts[0].text == "livr"
    assert [record.getMessage() for record in caplog.records] == [
        "text 'livr' is no organ that is known here, it is used as it is; did you mean 'liver'?"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no prompt: give prompts"),
        ({"text": ["liver"], "organs": "all"}, "several kinds of prompts: give prompts"),
        ({"text": ["liver", "spleen"], "point": [1, 2, 3]}, "2 texts with a point or a box: give prompts, a file"),
        ({"text": ["liver", "liver"]}, "two prompts are named 'liver'; join them"),
        ({"point": [1, 2]}, r"the command line: points holds \[1, 2\]; give 3 numbers, x, y, z"),
        ({"point": [1, 2, float("nan")]}, "give 3 numbers"),
        ({"box": [0, 0, 5, 9, 9, 4]}, "box is inverted along z, from 5 to 4; give x, y, z of the least"),
        ({"box": [0, 0, 5, 9, 9, 5], "space": "RAS"}, "box is empty along z, from 5 to 5"),
        ({"point": [1, 2, 3], "space": "ras"}, "space is 'ras'; give one of voxel, RAS, LPS"),
        ({"organs": "nothing.json"}, "organs is nothing.json: .*; give all, or a JSON file"),
    ],
)
def test_bad_options_have_one_clear_error(options, message):
    with pytest.raises(InputError, match=message):
        _ = PromptBook(**options).prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read as prompts"),
        ({"text": "liver"}, "holds no prompts; give a list such as"),
        ([], "holds no prompts"),
        ([{"txt": "liver"}], "prompt 1: has 'txt'; give some of name, case, text"),
        ([{"text": "liver"}, {"name": "x"}], "prompt 2: has neither text, points nor box; say what to segment"),
        ([{"negative": [[1, 2, 3]]}], "prompt 1: has negative points alone; say what to segment"),
        ([{"text": 3}], "prompt 1: text is 3; give text"),
        ([{"points": [1, 2, 3]}], r"prompt 1: points holds 1; give 3 numbers"),
        ([{"points": 5}], r"prompt 1: points is 5; give a list of points, \[\[x, y, z\]\]"),
        ([{"box": 5}], "prompt 1: box holds 5; give 6 numbers"),
        ("[" * 100000, "cannot be read as prompts"),
        ([{"box": [1, 2, 3]}], "prompt 1: box holds .*; give 6 numbers"),
        ([{"text": "liver", "class_id": -1}], "prompt 1: class_id is -1; give a whole number"),
        ([{"text": "a", "class_id": 1}, {"text": "b", "class_id": 1}], "a class_id has two names"),
        ([{"case": "p1", "text": "a"}, {"text": "a"}, {"case": "p1", "text": "a"}], "two prompts of p1 are named 'a'"),
    ],
)
def test_bad_files_have_one_clear_error(tmp_path, content, message):
    with pytest.raises(InputError, match=f"p.json.*{message}"):
        _ = PromptBook(written(tmp_path / "p.json", content)).prompts


def test_bad_csv_has_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"p.csv: cannot be read as prompts \(could not convert"):
        read_prompts(written(tmp_path / "p.csv", "text,points\nliver,1 2 x\n"))
