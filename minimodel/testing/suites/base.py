"""What all suites have in common: checks that have a name, state a law, and are counted."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from inspect import cleandoc
from typing import Any, ClassVar, NamedTuple

from hypothesis import seed as seeded

CHECKS_VERSION = 1  # of the set of checks: another number, and code that passed may fail


class Suite:
    """Laws that every implementation of ``subject`` obeys, as methods ``test_<name>(self, subject)``.

    A user subclasses a suite and gives one fixture of that name; pytest then runs every check:

        class TestMine(BackendSuite):
            expected_failures = {"name of a check": "the reason"}

            @pytest.fixture
            def backend(self):
                return mm.backends.load("mine")

    expected_failures   these checks must fail: one that passes is a failure
    """

    subject: ClassVar[str]
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        if unknown := set(cls.expected_failures) - set(cls.checks()):
            raise TypeError(f"{cls.__name__}.expected_failures: there is no check {sorted(unknown)[0]!r}")

    @classmethod
    def checks(cls) -> tuple[str, ...]:
        """The names of all checks, in order."""
        found = [name for base in reversed(cls.__mro__) for name in vars(base) if name.startswith("test_")]
        return tuple(dict.fromkeys(name.removeprefix("test_") for name in found))

    @classmethod
    def law(cls, check: str) -> str:
        """The first line of what a check says of itself."""
        return cleandoc(getattr(cls, f"test_{check}").__doc__).partition("\n")[0]


class Result(NamedTuple):
    """Of one check: "passed", "failed" or "expected" (it failed, as was said), the seconds it took, and the error."""

    check: str
    law: str
    outcome: str
    seconds: float
    error: str = ""


def run(
    suite: type[Suite], subject: Any, *, only: tuple[str, ...] = (), seed: int | None = None, shrink: bool = True
) -> Iterator[Result]:
    """Run the checks of a suite on a subject without pytest, all or some.

    seed     other examples than the usual ones
    shrink   make the example of a failure as small as it gets, which takes a while
    """
    for check in only or suite.checks():
        method = getattr(suite, f"test_{check}")
        if hasattr(method, "unshrunk"):
            method = seeded(seed)(method if shrink else method.unshrunk)
        start = time.perf_counter()
        error = _error(method, suite(), subject)
        outcome = "failed" if error else "passed"
        if check in suite.expected_failures:
            outcome, error = ("expected", error) if error else ("failed", "it was expected to fail, and passes")
        yield Result(check, suite.law(check), outcome, time.perf_counter() - start, error)


def _error(check: Callable[..., None], suite: Suite, subject: Any) -> str:
    """What a check raises, with the example that Hypothesis found."""
    try:
        check(suite, **{suite.subject: subject})
    except Exception as error:
        text = without("self", without(suite.subject, "".join(traceback.format_exception_only(error)).strip()))
        return text if str(error) else f"{text}\n{traceback.extract_tb(error.__traceback__)[-1].line}"
    return ""


def without(argument: str, text: str) -> str:
    """Hypothesis's example without an argument that is the same in all; each stands on lines of its own."""
    kept, dropping = [], False
    for line in text.splitlines():
        if line[:4] == "    " and line[4:5] not in " )]}":
            dropping = line.startswith(f"    {argument}=")
        elif line[:1] != " ":
            dropping = False
        if not dropping:
            kept.append(line)
    return "\n".join(kept)
