"""What holds for every patch, present and future, on every release of the default run.

A patch file dropped into ``nrl_patches/patches`` gets all of this without a line of test code, but for what it is to
users: ``ways/subjects.py`` must know that of it.
"""

import fnmatch
import functools
import importlib
import json

import pytest
from contract_side import TOGETHER
from packaging.version import Version
from releases import ENVIRONMENTS, FOLDER, PEFT, at_an_end, build_part, is_probed, results, run_on
from standins import ROOT
from ways.subjects import RULE, SUBJECTS

from nrl_patches.engine.affected import Answer
from nrl_patches.engine.distributions import Installed
from nrl_patches.engine.registry import load
from nrl_patches.matrix.environments import OF_THE_BASE
from nrl_patches.matrix.evidence import COMMITTED, Evidence

SCRIPT = ROOT / "tests" / "contract_side.py"

EVIDENCE = Evidence.read(COMMITTED)

PATCHES = load().patches

STATES = {"affected": "applied", "not affected": "not-affected", "not installed": "not-installed"}
"""What becomes of a patch, by what the versions say."""

every_release = pytest.mark.parametrize(
    "environment", [pytest.param(e, marks=pytest.mark.xdist_group(e)) for e in ENVIRONMENTS]
)
every_patch = pytest.mark.parametrize("patch_id", PATCHES)
probed = pytest.mark.parametrize(
    ("environment", "patch_id"),
    [
        pytest.param(environment, patch.id, marks=pytest.mark.xdist_group(environment))
        for environment in ENVIRONMENTS
        for patch in PATCHES.values()
        if is_probed(patch, environment)
    ],
)


every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)

ROUNDING = 1e-4
"""How far from the plainest way every other may be, relatively; nothing was seen beyond 7e-6, of torch's inductor."""


@functools.cache
def peft():
    return str(build_part(PEFT, FOLDER))


@functools.cache
def sides(environment):
    return results(run_on(environment, SCRIPT, environment, timeout=1200, WAYS_PEFT=peft()))


def side(environment, name):
    return sides(environment)[name]


@functools.cache
def raised_by_the_fixed_release(name, *names):
    """What the release that carries the fix for a subject raises on some ways, by name."""
    (subject,) = (subject for subject in SUBJECTS if subject.name == name)
    if subject.fixed is None:
        return {}
    off = {"NRL_PATCHES": "0", "WAYS_PEFT": peft()}
    gone = results(run_on(subject.fixed, SCRIPT, subject.fixed, subject.name, *names, **off))
    return {name: outcome["error"] for name, outcome in gone.items() if "error" in outcome}


def cannot_be_measured(environment, patch_id):
    """Whether the committed evidence says that the probe has no answer there: two releases that do not go together."""
    measurement = EVIDENCE.measurements.get(environment)
    cell = None if measurement is None else measurement.cells.get(patch_id)
    return cell is not None and cell.present is None


@probed
def test_without_the_patch_the_defect_is_there_exactly_where_it_was_declared(environment, patch_id):
    off = side(environment, "off")[patch_id]
    if cannot_be_measured(environment, patch_id):
        assert "error" in off
        return
    assert "error" not in off, off["error"]
    if off["present"] is None:
        assert off["affected"] in {"not installed", "not affected"}, off
    else:
        assert off["present"] == (off["affected"] == "affected"), off


@every_release
@every_patch
def test_with_the_patch_it_is_gone_and_elsewhere_the_patch_is_inert(environment, patch_id):
    on = side(environment, "on")[patch_id]
    if cannot_be_measured(environment, patch_id):
        assert on["state"] in {STATES[on["affected"]], "pending"}, on  # What cannot be imported is waited for.
    else:
        assert "error" not in on, on["error"]
        assert not on.get("present"), on
        # Some targets can be imported only as their probe does it.
        waits = set() if is_probed(PATCHES[patch_id], environment) else {"pending"}
        assert on["state"] in {STATES[on["affected"]], *waits}, on
    assert on["marked"] == (on["state"] == "applied")
    assert not on["notes"]
    assert on["restored"]


@probed
def test_import_apply_undo_in_every_permutation(environment, patch_id):
    outcomes = side(environment, "off")[patch_id]["permutations"]
    assert len(outcomes) == 8 + (environment in TOGETHER)
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize(
    ("environment", "patch_id"),
    [
        pytest.param(environment, patch.id, marks=pytest.mark.xdist_group(environment))
        for environment in ENVIRONMENTS
        for patch in PATCHES.values()
        if at_an_end(patch, environment)
    ],
)
def test_however_a_target_is_called_copied_or_inherited_the_defect_stays_away(environment, patch_id):
    problems = side(environment, "on")[patch_id]["structure"]
    tried = not cannot_be_measured(environment, patch_id)
    assert bool(problems) == (tried and any(fix.qualname for fix in PATCHES[patch_id].fixes))
    assert not {name: problem for name, problem in problems.items() if problem}


@pytest.mark.parametrize(
    ("environment", "subject"),
    [
        pytest.param(e, subject, marks=pytest.mark.xdist_group(e), id=f"{subject.name}, {e}")
        for subject in SUBJECTS
        for e in subject.environments
    ],
)
def test_every_way_to_use_a_target_is_right_or_fails_as_it_does_without_the_patch(environment, subject):
    gone = side(environment, "ways")
    patched, unpatched = gone["on"][subject.name], gone["off"].get(subject.name, {})
    assert patched
    raised = {name: outcome["error"] for name, outcome in patched.items() if "error" in outcome}
    # Where the release cannot do it and the fixed release can't either, the patch may not do it.
    own = {name for name in raised if "error" not in unpatched[name]}
    both = sorted(raised.keys() - own)
    fixed = raised_by_the_fixed_release(subject.name, *both) if both else {}
    limits = [limit for limit in subject.limits.items() if limit[0][0] == environment]
    own_limits = {n for n in both for (_, way), said in limits if fnmatch.fnmatch(n, way) and said in raised[n]}
    excused = {n for n in both if not subject.fixed or n in fixed} | own_limits
    wrong = {name: error for name, error in raised.items() if name not in excused}
    # What is wrong, and is said to be, is not silent.
    wrong |= {n: o["far"] for n, o in patched.items() if "far" in o and not o["far"] <= ROUNDING and not o["said"]}
    still_open = fnmatch.filter(wrong, subject.open.get(environment, ""))
    assert not {name: problem for name, problem in wrong.items() if name not in still_open}


@every_patch
def test_every_patch_belongs_to_a_subject_whose_ways_are_gone(patch_id):
    own = [s for s in SUBJECTS if any(fnmatch.fnmatch(patch_id, pattern) for pattern in s.patches)]
    assert len(own) == 1, "tests/ways/subjects.py must say once which ways there are to use its target"


@every_subject
def test_every_subject_tells_of_each_way_of_the_rule_how_it_is_gone_or_why_not(subject):
    pytest.importorskip("torch")
    names = [name for name, _ in importlib.import_module(f"ways.{subject.module}").ways(*subject.arguments)]
    assert len(names) == len(set(names))
    assert sorted([*subject.covers, *subject.leaves_out]) == sorted(RULE)
    uncovered = [way for way, pattern in subject.covers.items() if not fnmatch.filter(names, pattern)]
    assert not uncovered
    assert set(subject.environments) <= set(ENVIRONMENTS)


@every_patch
def test_each_patch_was_needed_in_some_and_not_in_other_releases_of_this_run(patch_id):
    affected = PATCHES[patch_id].affected
    environments = [dict(release.split("==") for release in e.split(" & ")) for e in ENVIRONMENTS]
    complete = [e for e in environments if e.keys() >= set(affected.distributions)]
    assert complete, "no environment of tests/releases.py has its distributions"
    answers = {affected.decide(lambda name, e=e: Installed(name, Version(e[name]))).answer for e in complete}
    # Where there is one release only, it has the defect, or there would be no patch.
    assert answers == ({Answer.YES} if OF_THE_BASE & {*affected.distributions} else {Answer.YES, Answer.NO})


@pytest.mark.parametrize(
    ("environment", "verdicts"),
    [
        pytest.param(environment, verdicts, marks=pytest.mark.xdist_group(environment))
        for environment, verdicts in {
            "transformers==5.5.0": {
                "transformers.gemma4_kv_sharing_needs_cache": "needed",
                "transformers.gemma4_kv_sharing_fsdp2": "not affected",
                "nemo_automodel.dtype_restore": "not installed",
            },
            "nemo-automodel==0.6.0 & transformers==5.12.1": {
                "nemo_automodel.qwen_vl_checkpoint_mapping": "needed",
                "nemo_automodel.dtype_restore": "not affected",
            },
        }.items()
    ],
)
def test_the_tripwires_command_on_real_releases(environment, verdicts):
    done = run_on(
        environment, ROOT / "tests" / "run_command.py", "tripwires", *verdicts, "--format", "json", fresh=True
    )
    found = {t["id"]: t["verdict"] for t in json.loads(done.stdout)["tripwires"]}
    assert found == verdicts
