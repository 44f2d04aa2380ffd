import pytest

from tests.helpers.closed_network import closed_network, why_not


@pytest.fixture(scope="session")
def closed():
    """A machine without a network; skips where there cannot be one."""
    if reason := why_not():
        pytest.skip(f"network namespaces need root and iproute2: {reason}")
    with closed_network() as network:
        yield network
