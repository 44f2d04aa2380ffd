"""Every kind of gallery, for tests that know none."""

import pytest

from dgl_runtime.gallery.address import open_gallery, open_or_create
from tests.helpers.made_galleries import MADE


@pytest.fixture(params=["local", "postgres"])
def place(request, tmp_path):
    """Where a gallery can be made."""
    if request.param == "local":
        return tmp_path / "gallery"
    return request.getfixturevalue("postgres").place()


@pytest.fixture
def gallery(place):
    """An empty one, open for writing."""
    with open_or_create(place, **MADE) as made:
        yield made


@pytest.fixture
def reader(place, gallery):
    """Opens the gallery for reading."""
    opened = []

    def look():
        opened.append(open_gallery(place, bundle_id="bundle-a"))
        return opened[-1]

    yield look
    for one in opened:
        one.close()
