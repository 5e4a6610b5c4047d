"""The pages of the documentation: the command that shows them, their links, and the commands and ids that they name."""

import fnmatch
import os
import pty
import re
import shlex
import subprocess
import sys

import click
import pytest
from hatchling.builders.wheel import WheelBuilder
from standins import ROOT

from nrl_patches.cli.docs import pages
from nrl_patches.cli.main import main
from nrl_patches.engine.registry import load, load_defects
from nrl_patches.engine.settings import VARIABLES

FOLDER = ROOT / "nrl_patches" / "docs"
REPOSITORY = "https://github.com/nrl-patches/nrl-patches/blob/main/"
RAW = "https://raw.githubusercontent.com/nrl-patches/nrl-patches/main/"
FILES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *sorted(FOLDER.glob("*.md")))
}
every_file = pytest.mark.parametrize("name", FILES)
NOT_IDS = {"vllm.general_plugins", "transformers.subject_defect", "vllm.subject_defect", "torch.compile", "torch.dtype"}
"""What has the form of an id: an entry point group, the placeholders of examples, and names of torch."""


def run(*args, **environ):
    env = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "NO_COLOR"}} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "nrl_patches", "docs", *args],
        env=env | environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_without_a_topic_every_page_is_listed_with_what_it_is_about():
    done = run()
    assert done.returncode == 0, done.stderr
    listed = dict(re.findall(r"^(\S+) {2,}(\S.*)$", done.stdout, re.MULTILINE))
    titles = {file.stem: file.read_text(encoding="utf-8").partition("\n")[0] for file in FOLDER.glob("*.md")}
    assert len(titles) > 10
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert listed.keys() == titles.keys() == pages().keys()
    for topic, title in titles.items():
        assert re.fullmatch(rf"# \w[^:]*: {re.escape(listed[topic])}", title)


def test_in_a_pipe_a_page_is_markdown():
    assert run("statuses").stdout == (FOLDER / "statuses.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("typed", ["arch", "Architecture", "architecture.md"])
def test_the_beginning_of_a_topic_is_enough(typed):
    assert run(typed).stdout == (FOLDER / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("staus", "no page 'staus'; did you mean statuses?"),
        ("zzz", "no page 'zzz'; `nrl-patches docs` lists them"),
        ("co", "'co' may be command-line or concepts"),
    ],
)
def test_what_names_no_page_or_several_is_refused(typed, said):
    done = run(typed)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.replace("│", " ").split())


def on_a_terminal(*args, columns):
    """Run the command on a terminal, and return what that got."""
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "NO_COLOR"}}
    env |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "nrl_patches", "docs", *args]
    with subprocess.Popen(command, stdout=theirs, stdin=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        got = b""
        try:
            while piece := os.read(ours, 65536):
                got += piece
        except OSError:  # The other end was closed.
            pass
        os.close(ours)
        assert process.wait(60) == 0
    return got.decode()


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_on_a_terminal_a_page_is_rendered_and_no_wider_than_it_reads_well(columns):
    got = on_a_terminal("concepts", columns=columns)
    assert "\x1b[" in got
    lines = plain(got).splitlines()
    assert max(map(len, lines)) <= min(columns, 120)
    assert not [line for line in lines if line.startswith(("# ", "|---"))]
    assert "nrl-patches docs statuses" in " ".join(" ".join(lines).split())
    assert ".md)" not in got


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(("topic", "columns"), [("limits", 80), ("nemo-rl", 120)])
def test_on_a_terminal_an_id_stays_one_word(topic, columns):
    page = (FOLDER / f"{topic}.md").read_text(encoding="utf-8")
    ids = {name for name in (*load().patches, *load_defects()[0]) if f"`{name}`" in page}
    got = plain(on_a_terminal(topic, columns=columns))
    assert len(ids) > 5
    assert {name for name in ids if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", got)} == set()


@pytest.mark.parametrize("columns", [10, 30])
def test_on_a_narrow_terminal_nothing_is_cut(columns):
    narrow, wide = (plain(on_a_terminal("environment", columns=c)) for c in (columns, 120))
    letters, expected = (sorted(re.sub(r"[\s─]", "", text)) for text in (narrow, wide))
    assert letters == expected


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def missing(name, link):
    """Say what a link of a file leads to, if that is not there."""
    target, _, anchor = link.partition("#")
    for address in (REPOSITORY, RAW):
        if target.startswith(address):
            file = ROOT / target.removeprefix(address)
            break
    else:
        if target.startswith("https://"):
            return ""
        file = (ROOT / name).parent / target if target else ROOT / name
    if not file.is_file():
        return f"{link}: no such file"
    headings = map(slug, re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    return f"{link}: no such heading" if anchor and anchor not in headings else ""


@every_file
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", FILES[name])
    assert [problem for problem in (missing(name, link) for link in links) if problem] == []


def test_readme_names_every_page_by_an_address_that_holds_on_an_index_too():
    links = re.findall(r"\]\(([^)\s]+)\)", FILES["README.md"])
    assert all(link.startswith("https://") for link in links)
    prefix = f"{REPOSITORY}nrl_patches/docs/"
    assert {link.removeprefix(prefix) for link in links if link.startswith(prefix)} == {f"{t}.md" for t in pages()}


def test_readme_has_each_patch_in_one_row_and_no_pattern_for_nothing():
    rows = re.findall(r"^\| (`[a-z_]+\.[^|]*`) \|", FILES["README.md"], re.MULTILINE)
    patterns = [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]
    for patch_id in load().patches:
        assert len([pattern for pattern in patterns if fnmatch.fnmatchcase(patch_id, pattern)]) == 1, patch_id
    assert [pattern for pattern in patterns if not fnmatch.filter(load().patches, pattern)] == []


def test_links_between_pages_are_such_that_the_terminal_can_name_the_topic():
    for name, text in FILES.items():
        if name.startswith("nrl_patches/docs/"):
            links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", text)
            assert [link for link in links if link.split("#")[0].removesuffix(".md") not in pages()] == []


def command_lines(text):
    """Find what follows `nrl-patches` in code, as lists of words."""
    fenced = re.findall(r"^ *```(?:sh|console|text)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()] + re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)
    for line in lines:
        for found in re.finditer(r"(?<![\w./\"-])(?:\.venv/bin/)?nrl-patches (?![=<>])(.*)", " ".join(line.split())):
            yield shlex.split(found[1].split(" && ")[0].replace("…", ""))


def objection(words):
    """Say what is wrong with a command line."""
    context = click.Context(main)
    command = main.get_command(context, words[0])
    if command is None:
        return f"no command {words[0]}"
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    given = words[1 : words.index("--")] if "--" in words else words[1:]
    unknown = [word for word in given if word.startswith("--") and word.partition("=")[0] not in options]
    return f"{words[0]} has no {unknown}" if unknown else ""


def test_commands_and_their_options_exist():
    found = [words for text in FILES.values() for words in command_lines(text) if words]
    found = [words for words in found if re.fullmatch(r"[a-z]+", words[0])]
    assert {words[0] for words in found} == set(main.list_commands(click.Context(main)))
    assert [problem for problem in map(objection, found) if problem] == []


@every_file
def test_ids_and_variables_exist(name):
    known = load().patches.keys() | load_defects()[0].keys() | NOT_IDS
    packages = "transformers|vllm|nemo_automodel|peft|huggingface_hub|torch"
    ids = set(re.findall(rf"(?<![\w./*-])(?:{packages})\.[a-z0-9_]+(?![\w.*/:(-])", FILES[name]))
    assert ids - known == set()
    variables = set(re.findall(r"\bNRL_PATCHES[A-Z_]*(?![A-Z_…])", FILES[name]))
    assert variables <= VARIABLES.keys()


def test_python_in_the_pages_compiles_and_the_example_is_one_that_is_tested():
    blocks = [
        b for text in FILES.values() for b in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]
    for block in blocks:
        compile(block, "page", "exec")
    example = ROOT / "tests" / "contributed" / "acme" / "acme_patches" / "standin" / "off_by_one.py"
    assert example.read_text(encoding="utf-8") in blocks


def test_no_line_of_prose_is_longer_than_a_line_of_code():
    for name, text in FILES.items():
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        prose = re.sub(r"\]\([^)]*\)", "]", prose)  # An address cannot be broken.
        long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
        assert long == [], name


def test_the_pages_and_pictures_are_in_the_wheel(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    import zipfile

    inside = set(zipfile.ZipFile(wheel).namelist())
    files = [*FOLDER.glob("*.md"), *FOLDER.glob("*.svg"), ROOT / "nrl_patches" / "matrix" / "data" / "ranges.svg"]
    assert {file.relative_to(ROOT).as_posix() for file in files} <= inside
