import pytest
from tiny import tiny_backbone
from tiny_models import make_model


@pytest.fixture(scope="session")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="session", params=["dgl-linear", "dgl-transformer", "zero-shot"])
def method(request):
    return request.param


@pytest.fixture(scope="session")
def model(backbone, method):
    return make_model(backbone, method)
