"""The command ``nrl-patches``: never imported by ``import nrl_patches``."""

from __future__ import annotations

import signal
import sys
import traceback
from importlib import import_module

import click

import nrl_patches
from nrl_patches.cli.options import NO_VERDICT

__all__ = ["main"]

_MODULES = {
    "audit": "audit",
    "check": "new",
    "completion": "completion",
    "demo": "demo",
    "diagnose": "diagnose",
    "docs": "docs",
    "doctor": "doctor",
    "explain": "explain",
    "list": "explain",
    "matrix": "matrix",
    "new": "new",
    "probe": "probe",
    "run": "run",
    "status": "status",
    "tripwires": "tripwires",
}
"""The module of ``nrl_patches.cli`` that has each subcommand; only that is imported when it is used."""


class _Group(click.Group):
    """Imports a subcommand when it is named, and keeps the exit code 1, which is an answer, apart from failures."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"nrl_patches.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, "list_patches" if cmd_name == "list" else cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Aborted!", err=True)
            sys.exit(128 + signal.SIGINT)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):  # Click handles these.
            raise
        except Exception:  # noqa: BLE001 - no exception may look like an answer
            traceback.print_exc()
            sys.exit(NO_VERDICT)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nrl_patches.__version__, prog_name="nrl-patches")
def main() -> None:
    """Show which workarounds this environment needs, and their status."""
