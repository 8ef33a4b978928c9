import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.segvol.prompts import PromptBook
from scripts.segvol.viewer import ViewerPromptsd, prompts_of

BOOK = PromptBook(text="liver")


def case_of(**request):
    return ViewerPromptsd("image")({"image": MetaTensor(torch.zeros(1, 9, 9, 9)), **request})


def test_clicks_and_box_become_the_one_prompt_of_the_case_and_of_its_image():
    case = case_of(foreground=[[1, 2, 3], [2, 2, 3]], background=[[5, 5, 5]], roi=[0, 1, 6, 7, 2, 8], text="liver")
    (prompt,) = prompts_of(case, BOOK)
    assert prompt.points == ((1, 2, 3), (2, 2, 3))
    assert prompt.negative == ((5, 5, 5),)
    assert prompt.box == (0, 1, 2, 6, 7, 8)
    assert (prompt.text, prompt.space, prompt.class_id) == ("liver", "voxel", 1)
    assert prompts_of(case["image"][None].meta, BOOK) == [prompt]


def test_case_without_clicks_has_the_prompts_of_the_book():
    case = case_of(foreground=[], background=[])
    assert case.keys() == {"image", "foreground", "background"}
    assert prompts_of(case, BOOK) == BOOK.prompts


def test_background_alone_is_refused():
    with pytest.raises(InputError, match="the request: has negative points alone; say what to segment"):
        case_of(background=[[1, 1, 1]])
