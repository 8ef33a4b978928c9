import pytest

from scripts.common.errors import InputError
from scripts.pretrain.links import link


def test_link_is_made_and_replaced(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        link(tmp_path / name, tmp_path / "out" / "images")
        assert (tmp_path / "out" / "images").resolve() == tmp_path / name
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


def test_what_is_no_link_stays(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="images: is not a link; remove what is in the way, or choose another OUT"):
        link(tmp_path, tmp_path / "images")
    assert not (tmp_path / "images").is_symlink()


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"images: cannot be linked \("):
        link(tmp_path, tmp_path / "file" / "images")
