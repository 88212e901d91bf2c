"""Images of unequal classes for the tests of this folder."""

import pytest
from mixes import prepared

from sfd.data.prepared import Prepared


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """180 and 60 images to train on, 60 and 20 held out."""
    return prepared(tmp_path_factory.mktemp("mixes"))
