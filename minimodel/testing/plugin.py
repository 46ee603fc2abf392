"""The pytest plugin: backends to test on, expected failures of suites, and the count of the checks that ran.

A green run never hides a check: one that is not collected, is marked to be skipped, skips itself, or for any other
reason does not run once it was selected, fails the run. A fixture (or a mark on the whole class) may skip a suite where
something is not installed, and a person may select tests: the summary says how many checks ran, and why not the others.

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

NAME, OUTPUT = "minimodel: check of a suite", "minimodel_selected"


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
            if check in suite.expected_failures:
                item.add_marker(pytest.mark.xfail(reason=suite.expected(check)[0], strict=True))
    for suite, checks in found.items():
        if (missing := set(suite.checks()) - checks) and not any("::" in argument for argument in config.args):
            raise pytest.UsageError(f"{suite.__name__}: not collected: {', '.join(sorted(missing))}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A check that is skipped by itself, or fails otherwise than expected, fails; one that ran is counted."""
    report = yield
    if not (suite := suite_of(item)):
        return report
    check, expected = check_of(item), hasattr(report, "wasxfail")
    marked = any(mark.name in ("skip", "skipif") for mark in item.own_markers)
    if report.skipped and not expected and (report.when == "call" or marked):
        report.outcome = "failed"
        report.longrepr = f"{check}: a check is not skipped; name it in expected_failures with a reason"
    elif report.skipped and expected and check not in suite.expected_failures:
        report.outcome = "failed"
        del report.wasxfail
        report.longrepr = f"{check}: a check has no xfail of its own; name it in expected_failures with a reason"
    elif report.skipped and expected and call.excinfo and not suite.is_expected(check, call.excinfo.value):
        report.outcome = "failed"
        del report.wasxfail
        report.longrepr = f"{check}: expected to fail with {suite.expected(check)[1]!r}, got\n{call.excinfo.value}"
    report.user_properties.append((NAME, name_of(item)))
    return report


def pytest_configure(config: pytest.Config) -> None:
    """The count of a session."""
    config.pluginmanager.register(Tally(config), "minimodel-tally")


class Tally:
    """How many checks of each suite there are, were selected, ran, and were skipped and why.

    Under pytest-xdist the workers collect, and the session that counts has nothing but their reports and what they say
    at their end.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.selected: dict[str, tuple[int, int]] = {}  # of each suite: its checks, and those selected
        self.ran: dict[str, set[str]] = {}
        self.skipped: dict[str, dict[str, str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What was selected."""
        checks = {name_of(item): suite for item in session.items if (suite := suite_of(item))}
        count = Counter(name_of(item) for item in session.items if suite_of(item))
        self.selected = {name: (len(suite.checks()), count[name]) for name, suite in checks.items()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A check that ran, or was skipped before it could."""
        name = str(dict(report.user_properties).get(NAME, ""))
        if name and report.when == "call":
            self.ran.setdefault(name, set()).add(report.nodeid)
        elif name and report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.setdefault(name, {})[report.nodeid] = reason.removeprefix("Skipped: ")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """What a worker of pytest-xdist had selected."""
        found = getattr(node, "workeroutput", {}).get(OUTPUT, {})
        self.selected |= {name: tuple(counts) for name, counts in found.items()}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail where a check that was selected neither ran nor was skipped with its suite."""
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[OUTPUT] = self.selected
        elif (
            exitstatus == pytest.ExitCode.OK
            and not self.config.option.collectonly
            and any(map(self.lost, self.selected))
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def lost(self, name: str) -> int:
        """How many of the checks that were selected did not come to run."""
        return self.selected[name][1] - len(self.ran.get(name, ())) - len(self.skipped.get(name, ()))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """How many checks of each suite ran, of how many, and why not all of them."""
        if self.selected and not self.config.option.collectonly:
            terminalreporter.section("checks of minimodel's suites")
            for name in sorted(self.selected, key=lambda name: name.rpartition("::")[2]):
                terminalreporter.line(self.line(name))

    def line(self, name: str) -> str:
        """Of one suite."""
        checks, selected = self.selected[name]
        why = sorted(set(self.skipped.get(name, {}).values()))
        why += [f"{checks - selected} not selected"] * (selected < checks)
        why += [f"{self.lost(name)} did not run"] * (self.lost(name) > 0)
        ran = f"{name.rpartition('::')[2]}: {len(self.ran.get(name, ()))} of {checks}"
        return f"{ran} ({'; '.join(why)})" if why else ran


def suite_of(item: pytest.Item) -> Any:
    """The suite that a test is a check of, or None."""
    base, owner = sys.modules.get("minimodel.testing.suites.base"), getattr(item, "cls", None)
    if base is None or owner is None or not issubclass(owner, base.Suite):
        return None
    return owner if check_of(item) in owner.checks() else None


def check_of(item: pytest.Item) -> str:
    """The name of a check, without what it is run on."""
    return str(getattr(item, "originalname", item.name)).removeprefix("test_")


def name_of(item: pytest.Item) -> str:
    """The suite, where it stands, and what it is run on."""
    parameters = item.nodeid.partition("[")[2]
    return item.nodeid.partition("[")[0].rpartition("::")[0] + (f"[{parameters}" if parameters else "")
