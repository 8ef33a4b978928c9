import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.common.errors import InputError
from scripts.data.crops import RandCropByPlacesd
from scripts.data.places import ForegroundPlacesd
from scripts.segvol.coarse import QUANTA
from scripts.segvol.inferer import ZoomInferer
from scripts.segvol.prompt_files import Prompt
from scripts.segvol.prompts import PromptBook
from scripts.segvol.samples import DrawPromptsd, RandZoomOrCropd
from scripts.segvol.windows import windows_around

WINDOW = (8, 16, 16)


class Stub(torch.nn.Module):
    """A network whose logits are the image, and which records what it was asked."""

    def __init__(self, spatial_size=WINDOW):
        super().__init__()
        self.spatial_size, self.seen, self.asked = spatial_size, [], []
        self.image_encoder = torch.nn.Linear(1, 1)

    def encode_image(self, image):
        assert image.shape == (1, 1, *self.spatial_size)
        self.seen.append(image.clone())
        return image.clone()

    @property
    def encoded(self):
        return len(self.seen)

    def decode(self, embedding, **prompts):
        self.asked.append({key: value.tolist() for key, value in prompts.items() if value is not None})
        return (embedding - 0.5) * 20


class Texts:
    def __call__(self, network, texts):
        return torch.arange(len(texts), dtype=torch.float32)[:, None] + 1


def image_of(volume):
    """A volume on its own grid, as an evaluator gives it."""
    meta = {"original_affine": torch.eye(4)[None], "spatial_shape": [torch.tensor([n]) for n in volume.shape]}
    return MetaTensor(volume[None, None], affine=torch.eye(4), meta={**meta, "case": ["a"]})


def inferer_of(**options):
    inferer = ZoomInferer(PromptBook(), **options)
    inferer.texts = Texts()
    return inferer


def blob(shape, around, inside=1.0, outside=0.25):
    volume = torch.full(shape, outside)
    volume[tuple(slice(a, b + 1) for a, b in zip(around[:3], around[3:], strict=True))] = inside
    return volume


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("shape", [(30, 40, 50), (5, 9, 11), (8, 40, 10)])
@pytest.mark.parametrize("prompt", [Prompt("a", text="liver"), Prompt("a", box=(0, 0, 0, 4, 8, 9))])
def test_windows_are_put_back_where_they_were_cut(shape, parity, prompt):
    """So that this network, at full resolution, returns the image."""
    volume = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    found = inferer_of(parity=parity).segment(image_of(volume), Stub(), [prompt])
    assert torch.equal((found[0, 0] > QUANTA // 2).float(), volume)


def test_without_zoom_in_one_window_is_seen():
    network = Stub()
    inferer_of(zoom_in="false").segment(
        image_of(blob((30, 40, 50), (9, 9, 9, 20, 20, 20))), network, [Prompt("a", text="x")]
    )
    assert network.encoded == 1


SMALL, PROMPT = (20, 100, 120), (5, 30, 40, 9, 59, 79)


def test_box_is_shifted_by_the_padding_of_a_small_volume():
    """With the numbers that the specification gives."""
    network = Stub((32, 256, 256))
    image = image_of(torch.ones(SMALL))
    inferer_of().segment(image, network, [Prompt("a", box=PROMPT)])
    assert network.asked[1]["boxes"] == [[11, 108, 108, 15, 137, 147]]


def test_box_is_not_shifted_with_the_published_fault():
    network = Stub((32, 256, 256))
    inferer_of(parity="true").segment(image_of(torch.ones(SMALL)), network, [Prompt("a", box=PROMPT)])
    np.testing.assert_allclose(network.asked[1]["boxes"], [PROMPT], atol=1)  # resized twice by the nearest voxel


@pytest.mark.parametrize("shape", [(30, 40, 50), (5, 40, 11)])
def test_window_shows_and_asks_what_a_training_crop_of_the_same_place_does(shape, monkeypatch):
    around = np.array([1, 13, 4, 4, 22, 9])
    label = blob(shape, around, outside=0.0)
    volume, network = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.5, Stub()
    inferer_of().segment(image_of(volume), network, [Prompt("a", box=tuple(around))])
    (start,) = windows_around(around, shape, WINDOW).starts
    monkeypatch.setattr(RandCropByPlacesd, "randomize", lambda *_: [np.array(start)])
    case = ForegroundPlacesd()({"image": MetaTensor(volume[None]), "label": MetaTensor(label[None])})
    crop = DrawPromptsd(organs=1)(RandZoomOrCropd(["image", "label"], spatial_size=WINDOW, crop_prob=1)(case))
    assert network.encoded == 2
    assert torch.equal(network.seen[1], crop["image"][None])
    assert network.asked[1] == {"boxes": crop["boxes"].tolist()}


def test_windows_of_a_large_structure_get_the_box_of_what_the_whole_volume_showed():
    network = Stub()
    around = (4, 8, 8, 25, 30, 40)
    inferer_of().segment(image_of(blob((30, 40, 50), around)), network, [Prompt("a", box=around)])
    boxes = np.array([asked["boxes"][0] for asked in network.asked[1:]])
    assert len(boxes) > 1
    assert (boxes >= 0).all()
    assert (boxes[:, 3:] < WINDOW).all()


def test_window_without_a_prompt_is_left_out_and_gets_a_box_of_minus_one_in_the_published_code():
    volume = torch.full((30, 40, 50), 0.25)
    volume[:4, :4, :4] = 1
    volume[-4:, -4:, -4:] = 1
    prompt = Prompt("a", box=(0, 0, 0, 3, 3, 3))
    ours, published = Stub(), Stub()
    found = inferer_of().segment(image_of(volume), ours, [prompt])
    inferer_of(parity=True).segment(image_of(volume), published, [prompt])
    assert [-1] * 6 not in [asked["boxes"][0] for asked in ours.asked]
    assert [-1] * 6 in [asked["boxes"][0] for asked in published.asked]
    assert len(ours.asked) < len(published.asked)
    assert torch.equal(found[0, 0] > QUANTA // 2, volume > 0.5)


def test_where_the_whole_volume_shows_nothing_windows_lie_around_points_and_boxes():
    volume = torch.full((30, 40, 50), 0.25)
    volume[13, 21, 33] = 1  # too small to be seen at low resolution
    for prompt in (Prompt("a", points=((13, 21, 33),)), Prompt("a", box=(12, 20, 32, 14, 22, 34))):
        found = inferer_of().segment(image_of(volume), Stub(), [prompt])
        assert (found[0, 0] > QUANTA // 2).nonzero().tolist() == [[13, 21, 33]]
    assert not (inferer_of().segment(image_of(volume), Stub(), [Prompt("a", text="cyst")]) > QUANTA // 2).any()


def test_points_of_both_kinds_box_and_text_go_together():
    network, volume = Stub(), blob((30, 40, 50), (9, 9, 9, 12, 14, 15))
    prompt = Prompt(
        "a", text="cyst", points=((10, 10, 10),), negative=((3, 3, 3), (11, 18, 11)), box=(9, 9, 9, 12, 14, 15)
    )
    inferer_of().segment(image_of(volume), network, [prompt])
    whole, window = network.asked
    assert whole["point_labels"] == [[1, 0, 0]]
    assert window["point_labels"] == [[1, 0]]  # of the points in it
    assert window["text"] == whole["text"] == [[1.0]]
    first = np.array([10, 10, 10]) - window["points"][0][0]
    assert window["boxes"][0] == [*(np.array([9, 9, 9]) - first), *(np.array([12, 14, 15]) - first)]


class TestEmbeddings:
    def test_second_prompt_of_the_same_place_encodes_nothing(self):
        box = (7, 10, 9, 10, 14, 15)  # of whole voxels of the resized volume, which finds the same box
        inferer, network, image = inferer_of(), Stub(), image_of(blob((30, 40, 50), box))
        inferer.segment(image, network, [Prompt("a", points=((8, 11, 10),))])
        first = network.encoded
        inferer.segment(image, network, [Prompt("b", box=box), Prompt("c", text="cyst")])
        assert network.encoded == first == 2

    def test_other_image_and_other_weights_are_encoded_anew(self):
        inferer, network = inferer_of(zoom_in=False), Stub()
        for count, volume in enumerate((torch.ones(9, 9, 9), torch.ones(9, 9, 9), torch.full((9, 9, 9), 0.9))):
            inferer.segment(image_of(volume), network, [Prompt("a", text="x")])
            assert network.encoded == (1, 1, 2)[count]
        with torch.no_grad():
            network.image_encoder.weight.add_(1)
        inferer.segment(image_of(volume), network, [Prompt("a", text="x")])
        assert network.encoded == 3

    def test_only_so_many_are_kept(self):
        inferer, network = inferer_of(kept_embeddings=2), Stub()
        inferer.segment(image_of(torch.ones(30, 40, 50)), network, [Prompt("a", text="x")])
        assert len(inferer.embeddings._known) == 2


def test_largest_keeps_the_most_probable_prompt_of_each_voxel():
    volume = torch.zeros(8, 16, 16)
    volume[:4], volume[4:] = 0.52, 0.9

    class Two(Stub):
        def decode(self, embedding, text=None, **_):
            return torch.where(embedding > 0.6, 2.0, 1.0) * (1 if text.item() == 1 else -1) + (
                0 if text.item() == 1 else 2.5
            )

    prompts = [Prompt("a", text="a", class_id=3), Prompt("b", text="b", class_id=7)]
    found = inferer_of(overlaps="largest", zoom_in=False).segment(image_of(volume), Two(), prompts)
    assert found.shape == (1, 2, 8, 16, 16)
    assert found[0, 0, 0].unique().tolist() == [7]  # 1.5 against 1
    assert found[0, 0, -1].unique().tolist() == [3]  # 2 against 0.5
    assert found[0, 1, -1, 0, 0] == round(255 / (1 + np.exp(-2)))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("a", points=((0, 0, 0), (1, 1, 1))), "a: all its points lie on air; move them"),
        (Prompt("a", points=((99, 0, 0),)), "a: the point .* lies outside of the image"),
    ],
)
def test_prompts_that_mean_nothing_are_refused_before_anything_is_predicted(prompt, message):
    volume, network = torch.zeros(9, 9, 9), Stub()
    volume[5, 5, 5] = 1
    with pytest.raises(InputError, match=message):
        inferer_of().segment(image_of(volume), network, [Prompt("x", text="x"), prompt])
    assert network.encoded == 0


def test_point_in_the_lungs_is_not_on_air():
    """Whose intensity is 0 too, but which the body surrounds."""
    volume = torch.zeros(9, 16, 16)
    volume[:, 2:14, 2:14] = 1
    volume[:, 5:11, 5:11] = 0
    inferer_of().segment(image_of(volume), Stub(), [Prompt("a", points=((4, 8, 8),))])
    with pytest.raises(InputError, match="on air"):
        inferer_of().segment(image_of(volume), Stub(), [Prompt("a", points=((4, 8, 1),))])


def test_prompts_that_do_not_fit_into_memory_are_refused_unless_one_map_is_kept(monkeypatch):
    monkeypatch.setattr("scripts.segvol.inferer.free_bytes", lambda: 3 * 9**3)
    image, prompts = image_of(torch.rand(9, 9, 9)), [Prompt(str(n), text="a", class_id=n) for n in range(1, 5)]
    with pytest.raises(InputError, match=r"4 prompts need 0.00 GB.*fewer at once, or set overlaps to largest"):
        inferer_of().segment(image, Stub(), prompts)
    assert inferer_of().segment(image, Stub(), prompts[:3]).shape[1] == 3
    assert inferer_of(overlaps="largest").segment(image, Stub(), prompts).shape[1] == 2


def test_case_without_prompt_wrong_shapes_and_options_are_refused():
    with pytest.raises(InputError, match="the case has no prompt: give a text"):
        inferer_of().segment(image_of(torch.ones(9, 9, 9)), Stub(), [])
    with pytest.raises(InputError, match=r"shape \(1, 2, 9, 9, 9\): give one image"):
        inferer_of()(torch.zeros(1, 2, 9, 9, 9), Stub())
    with pytest.raises(InputError, match="overlaps is 'x': give one of files, largest"):
        inferer_of(overlaps="x")
    with pytest.raises(InputError, match="kept_embeddings is 0"):
        inferer_of(kept_embeddings=0)
    with pytest.raises(InputError, match="a class_id is 300: with overlaps largest, give at most 255"):
        inferer_of(overlaps="largest").segment(
            image_of(torch.ones(9, 9, 9)), Stub(), [Prompt("a", text="a", class_id=300)]
        )
    with pytest.raises(InputError, match="does not say where its voxels lie"):
        inferer_of().segment(torch.ones(1, 1, 9, 9, 9), Stub(), [Prompt("a", points=((1, 1, 1),))])
