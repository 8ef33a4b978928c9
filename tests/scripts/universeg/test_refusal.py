import pytest

from scripts.common.errors import InputError
from scripts.models.universeg import UniverSeg
from scripts.universeg.refusal import refuse_etta


def test_adaptation_is_refused_as_the_network_has_nothing_to_adapt():
    kinds = {type(module).__name__ for module in UniverSeg(features=[4, 4]).modules()}
    assert not [kind for kind in kinds if "Norm" in kind]
    with pytest.raises(InputError, match=r"normalization layers of a network, and UniverSeg has none; leave etta.json"):
        refuse_etta()
