import pytest
import torch

from scripts.common.errors import InputError
from scripts.ultrabones.inferer import FrameInferer


def test_each_frame_is_predicted_and_channel_0_is_the_threshold():
    image = torch.randn(1, 1, 8, 6, 5)
    sizes = []

    def network(frames):
        sizes.append(len(frames))
        return 2 * frames

    pred = FrameInferer(batch_size=2, threshold=0.4)(image, network)
    assert pred.shape == (1, 2, 8, 6, 5)
    torch.testing.assert_close(pred[:, 1:], (2 * image).sigmoid())
    assert pred[:, 0].unique().tolist() == pytest.approx([0.4])
    assert sizes == [2, 2, 1]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="batch_size is 0: give 1 or more"):
        FrameInferer(batch_size=0)
    with pytest.raises(InputError, match=r"give one image \(1, 1, H, W, Z\)"):
        FrameInferer()(torch.zeros(1, 1, 8, 8), torch.nn.Identity())
