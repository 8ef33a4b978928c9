import io

import pytest
from tqdm import tqdm

from scripts.common.progress import closed_bars, progress_bar


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_bars_of_the_block_are_closed_and_others_stay_open(stop):
    outer, inner = progress_bar(total=2, file=io.StringIO()), []

    def windows():
        with closed_bars():
            inner.append(progress_bar(total=3, file=(text := io.StringIO())))
            inner.append(text)
            for _ in (bar := tqdm(range(5), file=io.StringIO())):
                inner.append(bar)
                raise stop

    with pytest.raises(stop):
        windows()
    assert inner[0].disable, "tqdm disables a bar when it is closed"
    assert inner[2].disable
    assert inner[1].getvalue().endswith("\n")
    assert not outer.disable
    outer.close()


def test_bar_that_is_closed_already_is_left_alone():
    with closed_bars():
        progress_bar(total=1, file=io.StringIO()).close()
