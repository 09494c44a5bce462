"""What holds for all tests: hypothesis sets no deadlines, and CI skips nothing."""

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# A machine that is busy otherwise is no finding.
settings.register_profile("sockgw", deadline=None)
settings.load_profile("sockgw")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


def _fail_if_skipped(report: Any) -> None:
    """Make a skip a failure that says for want of what, where ``CI`` is set."""
    if not _in_ci() or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"In CI nothing is skipped, but this was: {reason.removeprefix('Skipped: ')}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Generator[None, Any, Any]:
    report = yield
    _fail_if_skipped(report)
    return report
