"""Order of the tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files marked ``long`` first: a worker that began one of them last would keep the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
