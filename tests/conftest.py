"""For every test: hypothesis without deadlines (the machine may be busy); GPU tests that say why they skip."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("ds4sci", deadline=None)
settings.load_profile("ds4sci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use; here is none"))
