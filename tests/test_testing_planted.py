"""The kit is judged by what it catches: every planted bug, by the check that names it; every check has one."""

import importlib.util
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
    suite, check, broken, original, own = BUGS[what]
    (found,) = suites.run(own, broken, only=(check,), shrink=False)
    assert found.outcome == "failed", f"{what}: {check} did not see it"
    (found,) = suites.run(suite, original, only=(check,), shrink=False)
    assert found.outcome == "passed", found.error


def test_there_is_a_bug_for_every_check():
    kinds = [value for name, value in vars(suites).items() if name.endswith("Suite") and name != "Suite"]
    every = {(suite, check) for suite in kinds for check in suite.checks()}
    assert {(bug.suite, bug.check) for bug in BUGS.values()} == every
    assert len(every) >= 100
    readme = Path(__file__).parents[1] / "README.md"
    assert f" {len(BUGS)} planted bugs " in readme.read_text(encoding="utf-8")


def test_masks_that_got_lost_are_said_to_be():
    suite, check, broken, *_ = BUGS["masks are not saved"]
    (found,) = suites.run(suite, broken, only=(check,), shrink=False)
    assert "masks: the structure is None, where (*, *) was expected" in found.error
