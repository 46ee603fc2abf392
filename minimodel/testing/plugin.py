"""The pytest plugin: backends to test on, expected failures of suites, and the count of the checks that ran.

A green run never hides a check: one that is not collected, or skips itself, fails the run. A fixture may skip what is
not installed, and a person may select tests; the summary says how many checks ran.

pytest loads it wherever this package is installed, so it needs no Hypothesis: where nobody imported the suites there
are none to be looked after.
"""

import sys
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from minimodel import backends
from minimodel.backends import Backend

RAN = "minimodel: check that ran"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--minimodel-backends``"""
    parser.getgroup("minimodel").addoption(
        "--minimodel-backends",
        metavar="NAMES",
        help="what the fixture 'backend' is, as numpy,jax; by default every backend that is installed",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each backend named."""
    if "minimodel_backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("--minimodel-backends")
        found = names.split(",") if names else [name for name in backends.available() if name != "array_api"]
        metafunc.parametrize("minimodel_backend", found, scope="session")


@pytest.fixture(scope="session")
def backend(minimodel_backend: str) -> Backend:
    """Each of the backends of ``--minimodel-backends``."""
    return backends.load(minimodel_backend)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the failures that a suite expects; refuse a suite of which a check was not collected."""
    found: dict[Any, set[str]] = {}
    for item in items:
        if suite := suite_of(item):
            found.setdefault(suite, set()).add(check := check_of(item))
            if reason := suite.expected_failures.get(check):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    for suite, checks in found.items():
        if (missing := set(suite.checks()) - checks) and not any("::" in argument for argument in config.args):
            raise pytest.UsageError(f"{suite.__name__}: not collected: {', '.join(sorted(missing))}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A check that skips itself fails; one that ran is counted."""
    report = yield
    if (suite := suite_of(item)) and report.when == "call":
        if report.skipped and not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"{check_of(item)}: a check does not skip; name it in expected_failures with a reason"
        parameters = item.nodeid.partition("[")[2].rstrip("]")
        name = f"{suite.__name__}[{parameters}]" if parameters else suite.__name__
        report.user_properties.append((RAN, (name, len(suite.checks()))))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many checks of each suite ran, of how many."""
    ran = Counter(
        counted
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, counted in map(tuple, getattr(report, "user_properties", ()))
        if name == RAN
    )
    if ran:
        terminalreporter.section("checks of minimodel's suites")
    for (name, checks), count in sorted(ran.items()):
        terminalreporter.line(f"{name}: {count} of {checks}")


def suite_of(item: pytest.Item) -> Any:
    """The suite that a test is a check of, or None."""
    base, owner = sys.modules.get("minimodel.testing.suites.base"), getattr(item, "cls", None)
    if base is None or owner is None or not issubclass(owner, base.Suite):
        return None
    return owner if check_of(item) in owner.checks() else None


def check_of(item: pytest.Item) -> str:
    """The name of a check, without what it is run on."""
    return str(getattr(item, "originalname", item.name)).removeprefix("test_")
