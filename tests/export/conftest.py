import pytest
from tiny import tiny_backbone
from tiny_models import SETTINGS, make_model


@pytest.fixture(scope="session")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="session", params=[*SETTINGS, "zero-shot"])
def method(request):
    return request.param


@pytest.fixture(scope="session")
def model(method):
    return make_model(tiny_backbone(), method)
