"""The command line: results on stdout, progress and errors on stderr, exit codes 0, 1 (failed) and 2 (usage)."""

import os
import sys

from minimodel import __version__
from minimodel.problem import DivergedError

try:
    import click

    from minimodel.commands import bench, check, compress, run, use
except ModuleNotFoundError as missing:
    sys.exit(f"minimodel: the command line needs {missing.name}: pip install 'minimodel[cli]'")

FAILURES = (ValueError, TypeError, ImportError, OSError, DivergedError, MemoryError)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure is one line on stderr and an exit code."""
    try:
        sys.exit(cli.main(args=arguments, prog_name="minimodel", standalone_mode=False) or 0)
    except click.ClickException as error:
        fail(error.format_message(), 2 if isinstance(error, click.UsageError) else 1)
    except click.Abort:
        fail("interrupted", 130)
    except FAILURES as error:
        fail(str(error) or type(error).__name__, 1)
    except Exception as error:
        if os.environ.get("MINIMODEL_DEBUG"):
            raise
        fail(f"unexpected {type(error).__name__}: {error}; MINIMODEL_DEBUG=1 shows where", 1)


def fail(message: str, code: int) -> None:
    """One line, whatever the message holds."""
    click.echo(f"minimodel: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Search, train, prune and quantize small dense networks, on NumPy or JAX."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    run.run, compress.prune, compress.quantize, bench.bench, check.check, use.evaluate, use.predict, use.summary,
    use.list_backends,
):  # fmt: skip
    cli.add_command(command)
