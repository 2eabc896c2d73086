"""Under CI=true a skipped test is a failure, unless its reason is one of these."""

import os
import re
from collections.abc import Generator
from typing import Any

import pytest

ALLOWED = (
    r"(photographs|images|weights)\b.* not at hand",  # the data sets are no part of the checkout
    r"^wheels of the registry are not at hand",  # they come over the network
    r"no photographs under",
    r"^there is (a|no) GPU|^for machines without a GPU|^needs a CUDA device|^the stub of CUDA needs",
    r"a (disk|network) of its own",  # making one takes rights that a container may lack
    r"smdebug is installed",
    r"^hadolint is not made for this machine",
    r"file names are UTF-8 elsewhere",
)


def refuse(report: Any) -> None:
    """Turn a skip whose reason is not listed into a failure."""
    if os.environ.get("CI") != "true" or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not any(re.search(allowed, reason) for allowed in ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"CI=true, and the reason of this skip is not listed in tests/support/ci.py: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """For modules that are skipped as a whole."""
    report = yield
    refuse(report)
    return report
