"""Verdicts on declarations, from evidence that is written down here."""

import pytest
from packaging.version import Version

from nrl_patches import Patch
from nrl_patches.engine.affected import FLOORS
from nrl_patches.matrix.compare import judge
from nrl_patches.matrix.environments import KNOWN_GAPS
from nrl_patches.matrix.evidence import Cell, Evidence, Measurement

ID = "standin.count"
VERDICTS = {
    (True, True): "needed",
    (False, False): "not affected",
    (False, True): "obsolete",
    (True, False): "uncovered",
}


def declaring(affected):
    return Patch(ID, affected=affected, upstream=("https://example.org/1",), opt_out="NRL_DISABLE_COUNT")


def measured(states, *, releases=None, problems=()):
    """Evidence by environment: True bad, False good, None an error."""
    versions = {"python": "3.11", "torch": "2", "nrl-patches": "0"}
    cells = {
        name: Cell(
            "error" if state is None else VERDICTS[state, state],
            bool(state),
            "c0de",
            state,
            error="E: broke",
            date="2026-11-21",
        )
        for name, state in states.items()
    }
    measurements = {name: Measurement("2026-11-21", versions, {ID: cell}) for name, cell in cells.items()}
    measurements |= {name: Measurement("2026-11-20", versions, problem="no wheel") for name in problems}
    return Evidence(measurements, releases or {})


def along(states, **more):
    """The same along the releases of one distribution: b bad, g good, e error."""
    meaning = {"b": True, "g": False, "e": None}
    return measured({f"standin==1.{n}": meaning[state] for n, state in enumerate(states)}, **more)


@pytest.mark.parametrize(
    ("states", "affected", "seen"),
    [
        ("gbbg", "standin>=1.1,<1.3", "seen in 1.1, 1.2; gone in 1.3"),
        ("bbbb", "standin>=1.0,<=1.3", "seen in 1.0 to 1.3 (4 releases); still there in the newest that was measured"),
        ("gbgbg", ("standin>=1.1,<1.2", "standin>=1.3,<1.4"), "seen in 1.1; gone in 1.2; seen in 1.3; gone in 1.4"),
    ],
)
def test_what_it_suggests_is_what_it_accepts(states, affected, seen):
    evidence = along(states)
    judgement = judge(declaring("standin<0.1"), evidence)
    assert judgement.suggestion == (affected if isinstance(affected, tuple) else (affected,))
    assert judgement.objections
    exact = judge(declaring(affected), evidence)
    assert exact.objections == ()
    assert exact.seen == f"{seen}; measured 2026-11-21"
    assert exact.lines()[0].startswith("exact: ")


@pytest.mark.parametrize(
    ("affected", "objection"),
    [
        ("standin>=1.1,<1.2", "standin==1.2 has the defect, but is not declared"),
        ("standin>=1.0,<1.3", "standin==1.0 is declared, but does not have the defect"),
        ("standin>=1.1,!=1.3", "standin: the range extends past 1.3, the newest measured release"),
    ],
)
def test_too_narrow_too_wide_and_endless(affected, objection):
    judgement = judge(declaring(affected), along("gbbg"))
    assert judgement.objections == (objection,)
    assert judgement.lines()[-1] == '    paste: affected="standin>=1.1,<1.3"'


def test_several_ranges_are_pasted_as_a_sequence():
    lines = judge(declaring("standin>=1.1,<1.4"), along("gbgbg")).lines()
    assert lines[-1] == '    paste: affected=("standin>=1.1,<1.2", "standin>=1.3,<1.4")'


INDEX = {"1.0": "", "1.1": "", "1.2": "", "1.3": ""}


def test_a_declared_release_that_nobody_measured_is_an_objection_unless_it_was_yanked():
    releases = {"standin": INDEX | {"1.2.1": "", "1.2.2": "yanked: oh", "1.3a0": "pre-release"}}
    judgement = judge(declaring("standin>=1.1,<1.3"), along("gbbg", releases=releases))
    assert judgement.objections == ("declared, but not measured: 1.2.1",)
    assert judgement.lines()[0].startswith("OPEN: ")
    assert judgement.lines()[-1].startswith("    measure that first, with --releases or, where it was tried, --again")


def test_the_neighbours_of_a_range_belong_to_the_measurement():
    releases = {"standin": INDEX | {"0.8": "", "0.9": "", "1.4": "", "1.5": ""}}
    judgement = judge(declaring("standin>=1.0,<=1.3"), along("bbbb", releases=releases))
    assert judgement.objections == ("in a range, next to it or the newest, but not measured: 0.9, 1.4, 1.5",)


def test_a_hole_that_nobody_measured_keeps_the_verdict_open():
    evidence = measured(
        {"standin==1.0": True, "standin==1.2": True, "standin==1.3": False}, releases={"standin": INDEX}
    )
    judgement = judge(declaring("standin<0.1"), evidence)
    assert "in a range, next to it or the newest, but not measured: 1.1" in judgement.objections
    assert "paste" not in judgement.lines()[-1]


@pytest.mark.parametrize(
    ("states", "affected", "silent"),
    [
        ("bbeg", "standin>=1.0,<1.3", "1.2"),  # declared
        ("bbeg", "standin>=1.0,<1.2", "1.2"),  # next to the range
        ("ebbg", "standin>=1.1,<1.3", "1.0"),
        ("bebg", "standin>=1.0,<1.3", "1.1"),
        ("bgge", "standin>=1.0,<1.1", "1.3"),  # the newest: the defect may be back
    ],
)
def test_what_matters_and_gives_no_answer_keeps_the_verdict_open(states, affected, silent):
    judgement = judge(declaring(affected), along(states, releases={"standin": INDEX}))
    assert judgement.objections == (f"no answer, but it matters: standin=={silent}",)
    assert judgement.lines()[0].startswith("OPEN: ")


def test_what_is_known_to_be_a_gap_or_far_from_the_range_decides_nothing(monkeypatch):
    evidence = along("egbegg", releases={"standin": {f"1.{n}": "" for n in range(6)}})
    monkeypatch.setitem(KNOWN_GAPS, "standin==1.3", "the reason")
    judgement = judge(declaring("standin>=1.2,<1.3"), evidence)
    assert judgement.objections == ()
    assert judgement.remarks == ("standin==1.3 could not be measured: the reason",)


@pytest.mark.parametrize("end", ["<1.4", "<=1.4", "<1.5", "<3", "<9000", "!=1.4.2"])
def test_a_range_must_not_go_on_behind_the_newest_release(end):
    judgement = judge(declaring(f"standin>=1.0,{end}"), along("bbbb", releases={"standin": INDEX}))
    assert judgement.objections == ("standin: the range extends past 1.3, the newest measured release",)


def test_what_was_measured_of_other_code_does_not_count():
    judgement = judge(declaring("standin>=1.1,<1.3"), along("gbbg"), "other")
    assert judgement.objections == ("4 measurements are of other code than today's", "the defect was seen nowhere")
    assert judge(declaring("standin>=1.1,<1.3"), along("gbbg"), "c0de").objections == ()


def test_a_release_that_was_declared_since_has_not_seen_the_patch():
    evidence = along("gbg")
    evidence.measurements["standin==1.1"].cells[ID] = Cell("uncovered", declared=False, code="c0de", present=True)
    objection = "standin==1.1 is declared since, but the patch was not tried there"
    assert judge(declaring("standin>=1.1,<1.2"), evidence).objections == (objection,)


def test_a_problem_of_another_distribution_is_none_of_this_one():
    evidence = along("gbbg", releases={"standin": INDEX | {"1.2.1": ""}}, problems=["other==1 & standin==1.2.1"])
    assert judge(declaring("standin>=1.1,<1.3"), evidence).objections == ("declared, but not measured: 1.2.1",)


def test_a_declaration_that_became_a_pair_has_no_evidence_yet():
    judgement = judge(declaring("standin>=1.1,<1.3 & other>=1,<2"), along("gbbg"))
    assert "the defect was seen nowhere" in judgement.objections


def test_epochs_and_local_labels():
    evidence = measured({"standin==1!1.0+cpu": True, "standin==1!1.1": True})
    assert judge(declaring("standin>=1!1.0,<=1!1.1"), evidence).suggestion == ("standin>=1!1.0,<=1!1.1",)


def test_a_range_may_begin_where_measuring_begins(monkeypatch):
    monkeypatch.setitem(FLOORS, "standin", Version("1.1"))
    judgement = judge(declaring("standin>=1.1,<1.3"), along("bbbg", releases={"standin": INDEX}))
    assert judgement.objections == ()
    assert judgement.seen == "seen in 1.1, 1.2; gone in 1.3; measured 2026-11-21"
    assert judgement.remarks == (
        "nothing older than standin 1.1 is measured (FLOORS in nrl_patches/engine/affected.py)",
    )


def test_what_could_not_be_measured_is_said():
    judgement = judge(declaring("standin>=1.1,<=1.3"), along("gbe", problems=["standin==1.3"]))
    assert judgement.objections == ("no answer, but it matters: standin==1.2, standin==1.3",)
    assert judgement.remarks == (
        "standin==1.2 could not be measured: E: broke",
        "standin==1.3 could not be measured: no wheel",
    )


def test_a_patch_that_does_not_repair_is_an_objection_though_its_range_is_right():
    evidence = along("gbg")
    broken = Cell("ineffective", declared=True, code="c0de", present=True)
    evidence.measurements["standin==1.1"].cells[ID] = broken
    assert judge(declaring("standin>=1.1,<1.2"), evidence).objections == ("standin==1.1: ineffective",)


def test_nothing_measured_supports_nothing():
    judgement = judge(declaring("standin<2"), Evidence())
    assert judgement.seen == "no release measured"
    assert judgement.objections
    assert judge(declaring("standin<2"), along("ggg")).lines()[-1].startswith("    nothing to paste: ")


PAIR = {
    "front==1 & back==1": False,
    "front==1 & back==2": True,
    "front==2 & back==1": False,
    "front==2 & back==2": True,
    "front==3 & back==1": False,
    "front==3 & back==2": False,
}


def test_a_pair_is_a_product_of_two_ranges():
    judgement = judge(declaring("front>=1,<3 & back>=2,<=2"), measured(PAIR))
    assert judgement.objections == ()
    assert judgement.suggestion == ("front>=1,<3 & back>=2,<=2",)
    assert judgement.seen == "seen in 1, 2; gone in 3; measured 2026-11-21"


def test_a_pair_is_measured_beside_every_declared_release_of_the_other_at_both_ends():
    releases = {
        "front": {"1": "", "2": "", "3": ""},
        "back": {"1": "", "2": "", "2.0.1": "", "3": "", "2.0.2": "yanked"},
    }
    judgement = judge(declaring("front>=1,<3 & back>=2,<2.1"), measured(PAIR, releases=releases))
    assert judgement.objections == (
        "declared together with front 1, but not measured: 2.0.1",
        "declared together with front 2, but not measured: 2.0.1",
    )


def test_a_pair_that_no_product_describes_gets_no_suggestion():
    crossed = PAIR | {"front==1 & back==1": True}
    judgement = judge(declaring("front>=1,<3 & back>=2,<=2"), measured(crossed))
    assert judgement.objections == ("front==1 & back==1 has the defect, but is not declared",)
    assert judgement.suggestion == ()


def test_a_patch_of_one_distribution_is_judged_in_every_environment_of_a_release():
    evidence = measured({"front==1 & back==1": True, "front==1 & back==2": None, "front==2 & back==1": False})
    judgement = judge(declaring("front>=1,<2"), evidence)
    assert judgement.objections == ("no answer, but it matters: front==1 & back==2",)
    assert judgement.remarks == ("front==1 & back==2 could not be measured: E: broke",)
    assert judge(declaring("front>=1,<2"), evidence_of_two(newest=None)).objections == ()


def evidence_of_two(newest):
    states = {"front==1 & back==1": True, "front==2 & back==1": False, "front==2 & back==2": newest}
    return measured(states, releases={"front": {"1": "", "2": ""}})


def test_a_pre_release_is_a_remark_because_the_guard_decides_there():
    evidence = measured(
        {"standin==1.0": True, "standin==1.1rc1": True, "standin==1.1": False},
        releases={"standin": {"1.0": "", "1.1rc1": "pre-release", "1.1": ""}},
    )
    judgement = judge(declaring("standin>=1.0,<1.1"), evidence)
    assert judgement.objections == ()
    assert judgement.remarks == ("standin==1.1rc1 (pre-release) is affected, where the guard decides, not the range",)


def test_a_range_ends_with_what_has_the_defect_only_if_nothing_after_it_was_measured():
    judgement = judge(declaring("standin>=1.1,<=1.2"), along("gbbg"))
    assert judgement.objections == (
        "standin: standin>=1.1,<=1.2 says that 1.2 is the newest measured, but 1.3 was measured",
    )
    assert judgement.lines()[-1] == '    paste: affected="standin>=1.1,<1.3"'


@pytest.mark.parametrize(
    ("states", "objections"), [("gg", ()), ("gb", ("standin==1.1 has the defect, but is not declared",))]
)
def test_a_range_without_a_release_says_that_the_defect_is_nowhere(states, objections):
    assert judge(declaring("standin<0"), along(states)).objections == objections
