"""False alarms: ``python -m minimodel.testing.alarms --runs 200`` runs every check of a backend with fresh seeds.

Every failure of a backend that is right is a false alarm. By default the backends are those that come with the package
and are installed, the one over any namespace with array-api-strict. The seconds of the first run, with the usual
examples, have compilation in them.
"""

import time
from typing import Any, NamedTuple

from minimodel import backends
from minimodel.backends import Backend
from minimodel.bench.common import arguments, report
from minimodel.testing.oracles import names_installed
from minimodel.testing.suites import CHECKS_VERSION, BackendSuite, run


class Alarms(NamedTuple):
    """Of one backend: runs and checks in each, how many failed and which, and the seconds of the suite."""

    runs: int
    checks: int
    alarms: int
    failed: tuple[tuple[int | None, str], ...]  # the seed and the check
    first_seconds: float
    mean_seconds: float


def main(options: list[str] | None = None) -> int:
    """Print every alarm, and a line for each backend; the exit code is 1 if there was one."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=200, help="with other seeds each")
    parser.add_argument("--backends", default=",".join(names_installed()))
    parser.add_argument("--first-seed", type=int, default=1)
    given = parser.parse_args(options)
    found: dict[str, Any] = {}
    for name in given.backends.split(","):
        counted = alarms(backends.load(name), given.runs, given.first_seed)
        found[name] = counted._asdict()
        print(
            f"{name}: {counted.alarms} false alarms in {counted.runs} runs of {counted.checks} checks; "
            f"the first takes {counted.first_seconds:.1f} s, the others {counted.mean_seconds:.1f} s"
        )
    report({"version": CHECKS_VERSION, "first_seed": given.first_seed, "backends": found}, given.out)
    return int(any(each["alarms"] for each in found.values()))


def alarms(backend: Backend, runs: int, first_seed: int) -> Alarms:
    """The usual examples, and so many runs with seeds of their own; every failure is printed as it comes."""
    failed: list[tuple[int | None, str]] = []
    seconds = []
    for seed in (None, *range(first_seed, first_seed + runs)):
        start = time.perf_counter()
        for result in run(BackendSuite, backend, seed=seed):
            if result.outcome == "failed":
                failed.append((seed, result.check))
                print(f"seed {seed}: {result.check}\n{result.error}", flush=True)
        seconds.append(time.perf_counter() - start)
    mean = sum(seconds[1:]) / runs if runs else 0.0
    return Alarms(runs, len(BackendSuite.checks()), len(failed), tuple(failed), seconds[0], mean)


if __name__ == "__main__":
    raise SystemExit(main())
