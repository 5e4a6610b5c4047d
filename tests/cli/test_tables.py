"""What the commands print for people: tables on a terminal, in its width and its colours, and what a pipe gets."""

import json
import re
import subprocess
import sys

import pytest
from package_copy import Copy
from packaging.version import Version
from terminal import run_on_terminal

from nrl_patches import tables
from nrl_patches.audit.answers import answer
from nrl_patches.audit.bump import bump
from nrl_patches.audit.pins import Pins
from nrl_patches.audit.reports import Audit, as_tables, as_text
from nrl_patches.engine.registry import load, load_defects
from nrl_patches.engine.status import State
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.tripwires import reports
from nrl_patches.tripwires.run import Tripwire, Verdict

ESCAPE = "\x1b["
LONGEST = max((*load().patches, *load_defects()[0]), key=len)
WIDTHS = (80, 140)
READABLE = {"0", "1", "2", "31", "32", "35"}
"""Reset, bold, dim, red, green, magenta: what reads on a light and on a dark background."""


def plain(printed):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)


def drawn(parts, width=80, *, color=False):
    return tables.text_of(parts, width, color=color)


def ledger(*lines, headings=("status", "patch", "", "why")):
    return tables.Ledger(lines, headings)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """One patch that is due, one that is not, and one about a distribution that is not there."""
    made = Copy(tmp_path_factory.mktemp("copy"))
    made.upstream()
    early = {"affected": "standin<0.5", "opt_out": "NRL_DISABLE_EARLY", "probe": "return Observation(False)"}
    made.patch("an_early_one_that_is_not_due", **early)
    made.patch("another", affected="absent<2", target="absent.core:count", opt_out="NRL_DISABLE_ANOTHER")
    made.patch("zero")
    return made


def on_terminal(copy, *args, columns=80, **environ):
    inherited = copy.environ(**{"TERM": "xterm-256color", **environ})
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        if name not in environ:
            inherited.pop(name, None)
    command = [sys.executable, "-m", "nrl_patches", *args]
    return run_on_terminal(command, columns, inherited, cwd=copy.folder)


DUE, EARLY, ABSENT = "standin.zero", "standin.an_early_one_that_is_not_due", "standin.another"
FOLDED = "1 not installed: absent (--all shows every row)"


class TestCommands:
    @pytest.mark.parametrize("columns", WIDTHS)
    def test_status(self, copy, columns):
        code, printed = on_terminal(copy, "status", columns=columns)
        assert code == 0
        assert ESCAPE in printed
        shown = plain(printed)
        assert shown.startswith("3 patches: 1 pending, 1 not affected, 1 not installed\n\nstatus ")
        assert shown.index(DUE) < shown.index(EARLY)
        assert ABSENT not in shown
        assert shown.endswith(f"\n{FOLDED}\nactivated by import\n")
        (row,) = (line for line in shown.splitlines() if DUE in line)
        assert ("standin 1.0 is in standin<2" in row) is (columns == 140)
        assert max(map(len, shown.splitlines())) <= columns

    def test_status_shows_every_row_on_demand(self, copy):
        shown = plain(on_terminal(copy, "status", "--all")[1])
        assert re.search(rf"^not-installed +{re.escape(ABSENT)}$", shown, re.MULTILINE)
        assert shown.index(EARLY) < shown.index(ABSENT)
        assert "(--all" not in shown

    def test_status_of_a_process(self, copy):
        code = "import nrl_patches, standin.core, sys\nprint(flush=True)\nsys.stdin.readline()"
        command = [sys.executable, "-c", code]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=copy.environ(), cwd=copy.folder, **pipes) as process:
            process.stdout.readline()
            asked = ("status", "--pid", str(process.pid), "--pid", "999999999")
            code, printed = on_terminal(copy, *asked)
            piped = copy.run("nrl_patches", *asked).stdout
            process.communicate("\n")
        shown = plain(printed)
        assert code == 1  # There is no such process as the second.
        assert re.search(rf"^applied +{re.escape(DUE)}$", shown, re.MULTILINE)
        assert "3 patches: 1 applied, " in shown
        for line in (f"process {process.pid} (", "process 999999999 (?)", "there is no such process"):
            assert line in shown
        for line in ("activated by import", "as of its last change, or of the last call of nrl_patches.status() there"):
            assert line in " ".join(shown.split())
            assert line in piped
        assert f"  applied       {DUE}\n" in piped

    def test_status_in_a_pipe(self, copy):
        done = copy.run("nrl_patches", "status", TERM="xterm-256color")
        assert [line.split()[:2] for line in done.stdout.splitlines()[::2]] == [
            ["not-affected", EARLY],
            ["not-installed", ABSENT],
            ["pending", DUE],
            ["activated", "by"],
        ]
        assert ESCAPE not in done.stdout

    def test_a_pipe_for_people(self, copy):
        shown = copy.run("nrl_patches", "status", FORCE_COLOR="1", COLUMNS="140").stdout
        assert ESCAPE in shown
        assert FOLDED in plain(shown)
        assert plain(shown) == copy.run("nrl_patches", "status", FORCE_COLOR="1", NO_COLOR="1", COLUMNS="140").stdout
        for off in ("", "0"):
            assert FOLDED not in copy.run("nrl_patches", "status", FORCE_COLOR=off).stdout

    @pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "unknown"}])
    def test_a_terminal_without_colours_has_the_same_table(self, copy, environ):
        assert on_terminal(copy, "status", **environ) == (0, plain(on_terminal(copy, "status")[1]))

    @pytest.mark.parametrize(
        "args", [("probe", EARLY), ("check", EARLY), ("list",), ("audit",)], ids=lambda args: args[0]
    )
    def test_no_command_colours_what_no_color_forbids(self, copy, args):
        (code, printed), plainly = on_terminal(copy, *args), on_terminal(copy, *args, NO_COLOR="1")
        assert ESCAPE in printed
        assert plainly == (code, plain(printed))

    def test_columns_overrule_the_terminal(self, copy):
        assert on_terminal(copy, "status", COLUMNS="140") == on_terminal(copy, "status", columns=140)

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_list_hides_nothing_and_begins_with_what_is_here(self, copy, columns):
        code, printed = on_terminal(copy, "list", columns=columns)
        shown = plain(printed)
        assert code == 0
        assert re.findall(r"^(affected|not affected|not installed) +(\S+)", shown, re.MULTILINE) == [
            ("affected", DUE),
            ("not affected", EARLY),
            ("not installed", ABSENT),
        ]
        assert "A stand-in is off by one." in shown
        assert "standin<0.5" in shown
        assert max(map(len, shown.splitlines())) <= columns
        assert copy.run("nrl_patches", "list").stdout.splitlines()[:3] == [
            EARLY,
            "    A stand-in is off by one.",
            "    standin<0.5",
        ]

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_doctor_has_problems_first(self, copy, columns):
        code, printed = on_terminal(
            copy, "doctor", "--no-imports", columns=columns, VLLM_PLUGINS="lora", NRL_PATCHES_DISABLE=f"typo,{DUE}"
        )
        shown = plain(printed).partition("every id\n")[2]  # A warning, which names the typo, comes first.
        words = re.findall(r"^(problem|note) ", shown, re.MULTILINE)
        assert code == 1
        assert {"problem", "note"} == set(words)
        assert words == sorted(words, reverse=True)
        assert f"{words.count('problem')} problem" in shown.splitlines()[0]
        assert "next step: VLLM_PLUGINS=lora,nrl-patches, or unset it" in " ".join(shown.split())
        assert "No target was imported, as --no-imports asks for." in shown

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_tripwires(self, copy, columns):
        code, printed = on_terminal(copy, "tripwires", columns=columns)
        shown = plain(printed).partition("3/3")[2]  # The bar before it is drawn over itself.
        assert code == 0, shown
        assert "PASSED: 3 tripwires (1 needed, 1 not affected, 1 not installed)" in shown
        assert shown.index(DUE) < shown.index(EARLY)
        assert shown.rstrip().endswith(FOLDED)
        assert "the defect is there without the patch and gone with it: count 1" in " ".join(shown.split())
        piped = copy.run("nrl_patches", "tripwires").stdout
        assert re.search(rf"^not installed +{re.escape(ABSENT)} +0\.0 s$", piped, re.MULTILINE)

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_audit(self, copy, columns):
        args = ("audit", "--with", "standin==1.0")
        shown = plain(on_terminal(copy, *args, columns=columns)[1])
        assert re.search(rf"^(hit|unmeasured) +{re.escape(DUE)}", shown, re.MULTILINE)
        assert "\n1 not hit, 1 not in the pins: absent (--all shows every row)\n" in shown
        assert (EARLY in shown, ABSENT in shown) == (False, False)
        everything = plain(on_terminal(copy, *args, "--all", columns=columns)[1])
        assert everything.index(DUE) < everything.index(EARLY) < everything.index(ABSENT)
        assert max(map(len, everything.splitlines())) <= columns
        piped = copy.run("nrl_patches", *args).stdout
        assert f"\nnot hit: {EARLY}\nnot in the pins: {ABSENT}\n" in piped

    def test_an_outcome_that_fails_comes_first_with_its_next_step(self):
        obsolete = Tripwire(
            "z.gone",
            Verdict.OBSOLETE,
            "it is gone",
            "delete it",
            "z<2",
            {"z": "z 1"},
            ("https://example.org/1",),
            "f.py",
        )
        needed = Tripwire("a.there", Verdict.NEEDED, "it is there", "", "a<2", {"a": "a 1"}, ("https://x",), "a.py")
        shown = drawn(reports.as_tables([needed, obsolete], ()), 140)
        assert shown.startswith("FAILED: 1 of 2 tripwires (1 needed, 1 obsolete)\n")
        assert shown.index("z.gone") < shown.index("a.there")
        for words in ("it is gone", "next step: delete it", "file: f.py", "upstream: https://example.org/1"):
            assert words in shown
        assert shown.count("next step") == 1
        assert drawn(reports.as_tables([needed, obsolete], {Verdict.OBSOLETE})).startswith("PASSED: 2 tripwires")

    @pytest.mark.parametrize("columns", WIDTHS)
    def test_a_bump(self, columns):
        patches = list(load())
        old, new = (Pins("", {"transformers": Version(version)}) for version in ("5.5.0", "5.12.1"))
        evidence = Evidence.read(COMMITTED)
        found = Audit("", bumps=[(old, new, bump(patches, old, new, evidence))])
        shown = drawn(as_tables(found), columns)
        assert shown.startswith("transformers 5.5.0 → transformers 5.12.1\n")
        words = re.findall(r"^(begins|stays|ends|none) ", shown, re.MULTILINE)
        assert words == sorted(words, key=["begins", "stays", "ends"].index)
        assert {"begins", "ends"} <= set(words)
        assert len(re.findall(r"^none ", drawn(as_tables(found, everything=True), columns), re.MULTILINE)) > 0

    def test_an_audit_in_a_pipe_lists_what_does_not_hit(self):
        pins = Pins("", {"transformers": Version("5.5.0")})
        found = Audit("Measured.", environments=[(pins, answer(list(load()), pins, Evidence.read(COMMITTED)))])
        shown = as_text(found)
        assert "(--all" not in shown
        assert all(patch_id in shown for patch_id in load().patches)
        assert max(map(len, shown.splitlines())) <= 100

    def test_probe_says_it_in_a_sentence(self, copy):
        code, printed = on_terminal(copy, "probe", DUE, NRL_PATCHES="0")
        assert code == 1
        assert f"{DUE}: the defect is {ESCAPE}31m{ESCAPE}1mthere{ESCAPE}0m in standin 1.0 (count 1)." in printed
        piped = copy.run("nrl_patches", "probe", DUE, NRL_PATCHES="0")
        assert piped.stdout == plain(printed)
        assert piped.stdout.endswith(" The patch is disabled: NRL_PATCHES=0.\n")
        absent = copy.run("nrl_patches", "probe", DUE)
        assert absent.returncode == 0
        assert absent.stdout == (
            f"{DUE}: the defect is not there in standin 1.0 (count 2). "
            "The patch is applied: standin 1.0 is in standin<2.\n"
        )
        undue = copy.run("nrl_patches", "probe", EARLY)
        assert "No patch is due: standin 1.0 is not in standin<0.5." in undue.stdout

    def test_probe_prints_an_object_on_demand(self, copy):
        done = copy.run("nrl_patches", "probe", DUE, "--json", NRL_PATCHES="0")
        assert done.returncode == 1
        assert json.loads(done.stdout) == {
            "id": DUE,
            "present": True,
            "evidence": {"count": 1},
            "installed": {"standin": "standin 1.0"},
            "status": "disabled",
            "reason": "NRL_PATCHES=0",
        }


class TestLayout:
    @pytest.mark.parametrize("width", [*range(20, 160, 3)])
    def test_no_id_is_cut_and_no_line_is_too_long(self, width):
        lines = [tables.Line("not installed", LONGEST, "why " * 20, "title " * 20, "repaired if forced")]
        shown = drawn([ledger(*lines, headings=("status", "patch", "repair", "why"))], width)
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= width
        beside = width >= len("not installed  ") + len(LONGEST) + len("  repaired if forced") + 2 + 40
        assert ("why" in shown.splitlines()[1]) is beside
        assert shown.count("why") - beside == 20
        if width >= len("not installed  ") + len(LONGEST):
            assert LONGEST in shown
        else:
            subjects = "".join(line[min(15, width // 2) :] for line in shown.splitlines())
            assert LONGEST in subjects.replace(" ", "")

    def test_what_finds_no_room_beside_stands_below(self):
        line = tables.Line("applied", "a.b", "it is\nhere", "Title", "1.0 s")
        headings = ("status", "patch", "time", "why")
        assert drawn([ledger(line, headings=headings)], 40) == (
            f"\nstatus   patch\n{'─' * 40}\napplied  a.b\n           Title\n"
            "           1.0 s; it is\n           here\n\n"
        )
        beside = drawn([ledger(line, headings=headings)], 80).splitlines()
        assert beside[1].split() == ["status", "patch", "time", "why"]
        assert beside[3].split() == ["applied", "a.b", "1.0", "s", "it", "is"]
        assert beside[4].split() == ["Title", "here"]

    def test_an_empty_table_is_nothing(self):
        assert drawn([ledger(), "end"]) == "end\n"

    def test_nothing_controls_the_terminal_or_the_markup(self):
        shown = drawn(
            [ledger(tables.Line("applied", "a\x1b[2Jb", "[red]x[/] :smile:\a", "\r", "\x9b"))], 80, color=True
        )
        assert "a\\x1b[2Jb" in shown
        assert "[red]x[/] :smile:\\x07" in shown
        assert not set(shown) & set("\a\r\x9b")

    def test_the_colours_read_on_light_and_on_dark(self):
        lines = [tables.Line(word, "a.b", "why", "title", word) for word in tables.WORDS]
        shown = drawn([ledger(*lines, headings=("a", "b", "c", "d")), tables.fold(["x"])], 140, color=True)
        codes = {code for part in re.findall(r"\x1b\[([0-9;]*)m", shown) for code in part.split(";")}
        assert codes == READABLE

    def test_rows_without_news_are_faint_where_news_is_asked_for(self):
        line = tables.Line("not installed", "a.b", "why")
        faint, clear = (
            drawn([tables.Ledger([line], ("", "", "", ""), fade=fade)], 80, color=True) for fade in (True, False)
        )
        assert (f"{ESCAPE}2ma.b" in faint, f"{ESCAPE}1ma.b" in faint) == (True, False)
        assert (f"{ESCAPE}2ma.b" in clear, f"{ESCAPE}1ma.b" in clear) == (False, True)

    def test_every_word_of_a_first_column_has_its_place(self):
        words = [*State, *Verdict, "problem", "note"]
        assert [str(word) for word in words if str(word) not in tables.WORDS] == []
        assert tables.rank("anything else") == len(tables.WORDS)
        by_rank = sorted(("not installed", "needed", "error", "not affected"), key=tables.rank)
        assert by_rank == ["error", "needed", "not affected", "not installed"]

    def test_the_folded_line(self):
        words = ["not in the pins", "not hit", "not in the pins"]
        assert str(tables.fold(words, ["vllm", "peft", "vllm"])) == (
            "1 not hit, 2 not in the pins: peft, vllm (--all shows every row)"
        )
        assert str(tables.fold(["not hit"])) == "1 not hit (--all shows every row)"
