"""Order of the tests, and their independence of it."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files marked ``long`` first: a worker that began one of them last would keep the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test and its fixtures draw without a seed of their own does not depend on the tests before."""
    torch.manual_seed(0)
