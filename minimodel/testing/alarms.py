"""False alarms: ``python -m minimodel.testing.alarms --runs 200`` runs every check of a backend with fresh seeds.

Every failure of a backend that is right is a false alarm. The seconds are those of the first run, with the usual
examples, compilation included.
"""

import argparse
import time

from minimodel import backends
from minimodel.backends import Backend
from minimodel.testing.suites import BackendSuite, run


def main(arguments: list[str] | None = None) -> int:
    """Print every alarm, and a line for each backend; the exit code is 1 if there was one."""
    parser = argparse.ArgumentParser(prog="python -m minimodel.testing.alarms", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="with other seeds each")
    parser.add_argument("--backends", default="numpy,jax")
    parser.add_argument("--first-seed", type=int, default=1)
    options, total = parser.parse_args(arguments), 0
    for name in options.backends.split(","):
        backend, start = backends.load(name), time.perf_counter()
        found = alarms(backend, None)
        seconds = time.perf_counter() - start
        found += sum(alarms(backend, options.first_seed + i) for i in range(options.runs))
        checks = len(BackendSuite.checks())
        print(f"{name}: {found} false alarms in {options.runs} runs of {checks} checks; one takes {seconds:.1f} s")
        total += found
    return int(total > 0)


def alarms(backend: Backend, seed: int | None) -> int:
    """How many checks fail in one run; each is printed as it does."""
    found = [result for result in run(BackendSuite, backend, seed=seed) if result.outcome == "failed"]
    for result in found:
        print(f"seed {seed}: {result.check}\n{result.error}", flush=True)
    return len(found)


if __name__ == "__main__":
    raise SystemExit(main())
