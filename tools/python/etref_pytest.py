"""etref_pytest: etref in pytest. An installed etref brings it along; in the tree: pytest -p
etref_pytest.

    def test_my_layer(etref_golden):
        golden = etref_golden("smoke-et", profile="bf16")
        y = my_layer(golden["in.x"], ...)
        etref.assert_kernel(golden, {"fwd.y": y})
"""
from __future__ import annotations

import json
from typing import Any, Callable, Dict, Generator, Iterator

import etref
import pytest


@pytest.fixture(scope="session")
def etref_golden() -> Iterator[Callable[..., etref.Golden]]:
    """etref.golden(case, profile, framework), each once in a test run: its error bars, too."""
    goldens: Dict[str, etref.Golden] = {}

    def get(case: etref.Case, profile: etref.Profile = None, framework: Any = None) -> etref.Golden:
        key = json.dumps([case, profile, framework], sort_keys=True, default=dict)
        if key not in goldens:
            goldens[key] = etref.golden(case, profile, framework)
        return goldens[key]

    yield get
    for golden in goldens.values():
        golden.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, None]:
    """A verdict stands for itself: instead of a traceback, what is wrong and where the test
    asks."""
    outcome = yield
    report = outcome.get_result()
    if call.excinfo is not None and isinstance(call.excinfo.value, etref.Mismatch):
        place = call.excinfo.traceback.filter()[-1]
        report.longrepr = "%s\n%s:%d: %s" % (
            call.excinfo.value,
            place.path,
            place.lineno + 1,
            type(call.excinfo.value).__name__,
        )
