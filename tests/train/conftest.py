import pytest

from tests.helpers.tiny import tiny_backbone, write_tiny_backbone, write_tiny_clips


@pytest.fixture(scope="session")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory):
    return write_tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone")


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    return write_tiny_clips(tmp_path_factory.mktemp("clips"))
