import json

from tools.format_configs import format_json


def test_short_lists_stay_on_one_line_and_long_ones_break():
    assert format_json({"a": [96, 96, 96]}) == '{\n    "a": [96, 96, 96]\n}'
    assert format_json({"a": list(range(60))}).count("\n") > 60


def test_lists_of_components_and_expressions_break():
    text = format_json({"run": ["$a.run()"], "t": [{"_target_": "A"}]})
    assert text.split("\n")[1:3] == ['    "run": [', '        "$a.run()"']
    assert text.split("\n")[4:7] == ['    "t": [', "        {", '            "_target_": "A"']


def test_formatting_changes_no_value_and_is_stable():
    value = {"e": [], "d": {}, "n": None, "f": 1e-05, "u": "µ", "nested": [[1, 2], [3, 4]]}
    text = format_json(value)
    assert json.loads(text) == value
    assert format_json(json.loads(text)) == text
