"""The kit is judged by what it catches: every planted bug, by the check that names it, and nothing else."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from minimodel.testing import suites

SPEC = importlib.util.spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
planted = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(planted)
BUGS = planted.BUGS


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where a bug divides by 0
@pytest.mark.parametrize("what", BUGS)
def test_a_planted_bug_is_caught_by_the_check_that_names_it(what):
    suite, check, broken, original = BUGS[what]
    (found,) = suites.run(suite, broken, only=(check,), shrink=False)
    assert found.outcome == "failed", f"{what}: {check} did not see it"
    (found,) = suites.run(suite, original, only=(check,), shrink=False)
    assert found.outcome == "passed", found.error


def test_there_are_bugs_of_every_kind():
    kinds = Counter(bug.suite for bug in BUGS.values())
    assert len(BUGS) >= 30
    assert set(kinds) == {value for name, value in vars(suites).items() if name.endswith("Suite") and name != "Suite"}
