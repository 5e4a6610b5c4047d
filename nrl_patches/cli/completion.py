"""``nrl-patches completion``: the script that lets a shell complete commands, options and ids."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")
_NAME = "nrl-patches"
_VARIABLE = "_NRL_PATCHES_COMPLETE"
"""What click looks for when it runs the command of that name."""


_HELP = """Print the script that lets a shell complete the commands, their options, and the ids of patches.

SHELL is bash, zsh or fish; by default the one in the variable SHELL. To complete in every new shell:

\b
  bash, in ~/.bashrc:  eval "$(nrl-patches completion bash)"
  zsh, in ~/.zshrc:    eval "$(nrl-patches completion zsh)"
  fish:                nrl-patches completion fish > ~/.config/fish/completions/nrl-patches.fish

Completing an id imports no upstream package.
"""
"""Not the docstring, which may not have the character by which click keeps lines apart."""


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print the script for one shell."""
    name = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(name) if name in _SHELLS else None
    if found is None:
        raise click.UsageError(f"expected {', '.join(_SHELLS)}; found {name!r} in the variable SHELL")
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, _NAME, _VARIABLE).source())
