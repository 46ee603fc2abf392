"""What all suites have in common: checks that have a name, state a law, and are counted."""

import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from inspect import cleandoc
from typing import Any, ClassVar, NamedTuple

from hypothesis import seed as seeded

CHECKS_VERSION = 2  # of the set of checks: another number, and code that passed may fail


class Suite:
    """Laws that every implementation of ``subject`` obeys, as methods ``test_<name>(self, subject)``.

    A user subclasses a suite and gives one fixture of that name; pytest then runs every check:

        class TestMine(BackendSuite):
            expected_failures = {"name of a check": "the reason"}

            @pytest.fixture
            def backend(self):
                return mm.backends.load("mine")

    expected_failures   these checks must fail: one that passes is a failure. Beside the reason there may be a regular
                        expression that the error must match, ("the reason", "no uint32"), so that a check that fails
                        for another reason is a failure too.
    """

    subject: ClassVar[str]
    expected_failures: ClassVar[Mapping[str, str | tuple[str, str]]] = {}

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
        return cleandoc(getattr(cls, f"test_{check}").__doc__ or "").partition("\n")[0]

    @classmethod
    def expected(cls, check: str) -> tuple[str, str]:
        """The reason of an expected failure, and what its error must match."""
        found = cls.expected_failures[check]
        return (found, "") if isinstance(found, str) else found

    @classmethod
    def is_expected(cls, check: str, error: BaseException) -> bool:
        """Whether it fails for the reason that was given."""
        return check in cls.expected_failures and bool(re.search(cls.expected(check)[1], said(error)))


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

    only     names of checks, by default all; ValueError for one that there is not
    seed     other examples than the usual ones
    shrink   make the example of a failure as small as it gets, which takes a while
    """
    if unknown := [check for check in only if check not in suite.checks()]:
        raise ValueError(f"only: expected checks of {suite.__name__}, got {unknown[0]!r}; there are {suite.checks()}")
    return (judged(suite, subject, check, seed, shrink) for check in only or suite.checks())


def judged(suite: type[Suite], subject: Any, check: str, seed: int | None, shrink: bool) -> Result:
    """One check."""
    method = getattr(suite, f"test_{check}")
    if hasattr(method, "again"):
        method = method.again(shrink)  # a copy: a seed stays with what it was set on
        method = method if seed is None else seeded(seed)(method)
    start = time.perf_counter()
    error = _error(method, suite(), subject)
    seconds, outcome, text = time.perf_counter() - start, "failed" if error else "passed", _text(error, suite.subject)
    if check in suite.expected_failures:
        if not error:
            outcome, text = "failed", "it was expected to fail, and passes"
        elif suite.is_expected(check, error):
            outcome = "expected"
        else:
            text = f"it was expected to fail with {suite.expected(check)[1]!r}, and fails with\n{text}"
    return Result(check, suite.law(check), outcome, seconds, text)


def _error(check: Callable[..., None], suite: Suite, subject: Any) -> Exception | None:
    """What a check raises."""
    try:
        check(suite, **{suite.subject: subject})
    except Exception as error:
        return error
    return None


def _text(error: Exception | None, subject: str) -> str:
    """An error with the example that Hypothesis found."""
    if error is None:
        return ""
    text = without("self", without(subject, "".join(traceback.format_exception_only(error)).strip()))
    return text if str(error) else f"{text}\n{traceback.extract_tb(error.__traceback__)[-1].line}"


def said(error: BaseException) -> str:
    """All that an error says, and those that it is a group of."""
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([f"{type(error).__name__}: {error}", *map(said, parts)])


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
