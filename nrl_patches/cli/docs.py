"""``nrl-patches docs``: the pages of the documentation, which ship with the package."""

from __future__ import annotations

import difflib
import re
from importlib import resources

import click

__all__ = ["docs", "pages"]

_TITLE = re.compile(r"# ([^:\n]+): ([^\n]+)\n")


@click.command()
@click.argument("topic", default="")
def docs(topic: str) -> None:
    """Show a page of the documentation; without TOPIC, list the topics.

    TOPIC may be shortened as long as it names one page. On a terminal the page is rendered; otherwise it is printed as
    Markdown.

    Exits with 2 if there is no such page.
    """
    found = pages()
    if not topic:
        width = max(map(len, found))
        for name, text in found.items():
            click.echo(f"{name:<{width}}  {_subject(text)}")
        click.echo("\n`nrl-patches docs TOPIC` shows one; begin with quick-start.")
        return
    text = found[_chosen(topic, list(found))]
    from nrl_patches.cli.markdown import show  # noqa: PLC0415 - the list of topics needs no rich

    if not show(text):
        click.echo(text, nl=False)


def pages() -> dict[str, str]:
    """Return the Markdown of every page by its topic, in alphabetical order."""
    folder = resources.files("nrl_patches").joinpath("docs")  # Not a path: the package may be in an archive.
    files = {file.name.removesuffix(".md"): file for file in folder.iterdir() if file.name.endswith(".md")}
    return {topic: files[topic].read_text(encoding="utf-8") for topic in sorted(files)}


def _subject(text: str) -> str:
    title = _TITLE.match(text)
    return title[2] if title else text.partition("\n")[0]


def _chosen(typed: str, topics: list[str]) -> str:
    asked = typed.lower().removesuffix(".md").replace("_", "-").replace(" ", "-")
    begins = [asked] if asked in topics else [topic for topic in topics if topic.startswith(asked)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise click.BadParameter(f"{typed!r} may be {' or '.join(begins)}", param_hint="TOPIC")
    close = difflib.get_close_matches(asked, topics, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise click.BadParameter(f"no page {typed!r}{hint}; `nrl-patches docs` lists them", param_hint="TOPIC")
