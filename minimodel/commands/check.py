"""``minimodel check``: the laws of backends, on one of them."""

import sys
from importlib import import_module
from typing import Any

import click

from minimodel import backends
from minimodel.commands.options import JSON
from minimodel.terminal import to_json


@click.command()
@click.argument("name")
@click.option("--import", "imports", multiple=True, help="A module to import first, which registers the backend.")
@click.option("--seed", type=click.IntRange(0), help="Of the examples; without it they are the same on every run.")
@JSON
def check(name: str, imports: tuple[str, ...], seed: int | None, as_json: bool) -> None:
    """Check every law of backends on NAME, as ``backends`` lists them; exit code 1 if it breaks one."""
    sys.path.insert(0, "")  # where a module of one's own is looked for, as by ``python -m``
    for module in imports:
        import_module(module)
    try:
        from minimodel.testing import suites
    except ModuleNotFoundError as missing:
        raise ImportError(f"check needs {missing.name}: pip install 'minimodel[test]'") from missing
    suite, found = suites.BackendSuite, []
    for result in suites.run(suite, backends.load(name), seed=seed):
        found.append(result)
        if sys.stderr.isatty():
            click.echo(f"{len(found)} of {len(suite.checks())} {result.check} {result.outcome}", err=True)
    failed = [result for result in found if result.outcome == "failed"]
    if as_json:
        record = {"backend": name, "version": suites.CHECKS_VERSION, "checks": [result._asdict() for result in found]}
        click.echo(to_json(record))
    else:
        show(name, found, suites.CHECKS_VERSION)
    if failed:
        raise click.ClickException(f"{name} failed {len(failed)} of {len(found)} checks")


def show(name: str, found: list[Any], version: int) -> None:
    """A line for each check, and the errors below."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    passed = sum(result.outcome == "passed" for result in found)
    title = f"{name}, {passed} of {len(found)} checks passed, version {version} of the checks"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("check", "law", ""):
        table.add_column(column)
    table.add_column("s", justify="right")
    for result in found:
        table.add_row(result.check.replace("_", " "), escape(result.law), result.outcome, f"{result.seconds:.2f}")
    Console().print(table)
    for result in found:
        if result.error:
            click.echo(f"{result.check}\n{result.error}\n")
