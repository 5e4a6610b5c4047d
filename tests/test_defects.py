"""Defects that are known and have no fix: declared like patches, found by the commands, and never applied."""

import re

import pytest
from package_copy import Copy
from standins import ROOT

import nrl_patches
from nrl_patches import DeclarationError, Defect
from nrl_patches.engine.registry import load, load_defects

DEFECT = '''\
"""A stand-in counts one too few, and nobody here repairs it.

Problem: it returns one too few.
Hit by: whoever calls it.
Advice: add one yourself.
Remove when: it counts right.
"""

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected={affected!r},
    upstream=("https://example.org/issues/2",),
    advice="Add one yourself.",
)


@defect.probe
def probe():
    from standin.core import count

    return Observation(count() != 2, {{"count": count()}})
'''

ID = "standin.counts"


@pytest.fixture
def copy(tmp_path):
    made = Copy(tmp_path)
    made.upstream()
    made.write("nrl_patches/defects/standin/__init__.py", "")
    made.write("nrl_patches/defects/standin/counts.py", DEFECT.format(affected="standin<2"))
    return made


def command(copy, *args):
    return copy.run("nrl_patches", *args)


def test_list_and_explain_show_it_apart_from_patches(copy):
    copy.patch()
    listed = command(copy, "list").stdout
    assert listed.index("standin.count\n") < listed.index("Known, and not repaired here") < listed.index(ID)
    explained = command(copy, "explain", ID).stdout
    assert re.search(r"advice +Add one yourself\.", explained)
    assert "switch off" not in explained


@pytest.mark.parametrize(
    ("affected", "core", "verdict", "code"),
    [
        ("standin<2", "def count():\n    return 1\n", "known", 0),
        ("standin<2", "def count():\n    return 2\n", "obsolete", 1),
        ("standin<0.5", "def count():\n    return 1\n", "uncovered", 1),
        ("standin<0.5", "def count():\n    return 2\n", "not affected", 0),
    ],
)
def test_its_tripwire_has_one_side(copy, affected, core, verdict, code):
    copy.upstream(core=core)
    copy.write("nrl_patches/defects/standin/counts.py", DEFECT.format(affected=affected))
    done = command(copy, "tripwires", ID)
    assert done.returncode == code, done
    assert re.search(rf"^{verdict} +{re.escape(ID)} ", done.stdout, re.MULTILINE)
    assert ("Add one yourself." in done.stdout) is (verdict == "known")


def test_audit_says_that_it_is_not_repaired_and_can_leave_it_out(copy):
    done = command(copy, "audit", "--json")
    assert done.returncode == 0  # It would be 1 everywhere and for ever.
    assert '"kind": "known"' in done.stdout
    assert '"repair": "not repaired"' in done.stdout
    assert '"advice": "Add one yourself."' in done.stdout
    assert ID not in command(copy, "audit", "--ignore", ID).stdout
    assert command(copy, "audit", "--ignore", "no.such").returncode == 2


def test_the_probe_runs_by_itself_and_nothing_is_applied(copy):
    done = command(copy, "probe", ID, "--json")
    assert done.returncode == 1
    assert '"present": true' in done.stdout
    assert ID not in command(copy, "status").stdout


def test_one_that_cannot_be_loaded_is_said_and_hides_no_other(copy):
    copy.write("nrl_patches/defects/standin/broken.py", "1 / 0\n")
    done = command(copy, "list")
    assert ID in done.stdout
    assert "standin.broken: expected a patch file; found that it cannot be loaded" in done.stderr


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"opt_out": "NRL_DISABLE_X"}, "has no field opt_out"),
        ({"affected": "x"}, "affected: "),
        ({"victims": {"Gemma": "x"}}, "victims: "),
        ({"upstream": ()}, "upstream: "),
        ({"advice": ""}, "advice: has none"),
        ({"measured": True}, "probe: has none"),
    ],
)
def test_what_is_missing_is_named(fields, complaint):
    good = {"affected": "x<1", "upstream": ("https://example.org/1",), "advice": "Wait.", "measured": False}
    with pytest.raises(DeclarationError, match=complaint):
        Defect(__name__, **good | fields).check()


def test_every_file_loads_and_no_id_is_taken_twice():
    defects, broken = load_defects()
    assert not broken
    assert not defects.keys() & load().patches.keys()
    page = (ROOT / "nrl_patches" / "docs" / "limits.md").read_text()
    assert [defect_id for defect_id in defects if f"`{defect_id}`" not in page] == []
    assert nrl_patches.Defect is Defect
