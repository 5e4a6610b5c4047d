"""What every patch declares, against the evidence that the package carries; and that the evidence is about this code.

A failure here says what to do: run `nrl-patches matrix`, paste what it prints, and write it with `--update`.
"""

import functools
import re

import pytest
import yaml
from releases import ENVIRONMENTS
from standins import ROOT, run

from nrl_patches.cli.matrix import matrix
from nrl_patches.engine.registry import load, load_defects
from nrl_patches.matrix.compare import judge
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.matrix.fingerprint import fingerprint
from nrl_patches.matrix.names import is_declared, parse_environment
from nrl_patches.matrix.plan import axis
from nrl_patches.matrix.update import in_words

EVIDENCE = Evidence.read(COMMITTED)
PATCHES = load().patches
DEFECTS = load_defects()[0]
every_patch = pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)


@functools.cache
def judged(patch_id):
    patch = PATCHES[patch_id]
    return judge(patch, EVIDENCE, fingerprint(patch))


@every_patch
def test_a_declaration_is_exactly_what_was_measured(patch):
    judgement = judged(patch.id)
    assert not judgement.objections, "\n".join(judgement.lines())
    assert judgement.runs


@every_patch
def test_the_evidence_is_about_this_code_and_this_declaration(patch):
    cells = {e: m.cells[patch.id] for e, m in EVIDENCE.measurements.items() if patch.id in m.cells}
    assert {cell.code for cell in cells.values()} == {fingerprint(patch)}
    assert {e: cell.declared for e, cell in cells.items()} == {e: is_declared(patch, e) for e in cells}


@every_patch
def test_the_default_run_measures_afresh_where_the_measured_state_changes(patch):
    here = {e: parse_environment(e).get(axis(patch)) for e in ENVIRONMENTS}
    affected = {version for e, version in here.items() if is_declared(patch, e)}
    for measured in judged(patch.id).runs:
        assert affected >= {measured.bad[0], measured.bad[-1]}
        assert measured.good is None or measured.good in {*here.values()} - affected


WINDOWS = {"transformers": "5.0.0", "nemo-automodel": "0.3.0", "vllm": "0.8.0"}


@pytest.mark.parametrize("distribution", WINDOWS)
def test_every_final_release_since_the_oldest_promised_one_was_measured(distribution):
    first = parse_environment(f"{distribution}=={WINDOWS[distribution]}")[distribution]
    tried = {parse_environment(e).get(distribution) for e in EVIDENCE.measurements}
    there = {v for v, remark in EVIDENCE.releases[distribution].items() if remark != "pre-release"}
    finals = {parse_environment(f"{distribution}=={v}")[distribution] for v in there}
    assert {version for version in finals if version >= first} <= tried
    assert max(finals) in tried


def test_what_could_not_be_measured_says_why():
    for environment, measurement in EVIDENCE.measurements.items():
        assert measurement.problem or measurement.cells, environment
        for cell in measurement.cells.values():
            assert (cell.present is None) == bool(cell.error and cell.verdict == "error"), environment


def test_the_evidence_does_not_tell_where_it_was_measured():
    text = COMMITTED.read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|usr|opt|work)/", text)


def test_the_evidence_is_small_and_the_picture_is_there():
    # Each patch of transformers adds the answers of its probe in some ninety releases: 20 kB.
    for name, most in {"matrix.json": 2_200_000, "ranges.svg": 45_000}.items():
        assert 5_000 < (COMMITTED.parent / name).stat().st_size < most
    assert "nrl_patches/matrix/data/ranges.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("patch", [*PATCHES.values(), *DEFECTS.values()], ids=[*PATCHES, *DEFECTS])
def test_a_table_names_the_releases_and_tells_a_fix_from_the_end_of_what_is_known(patch):
    file = ROOT / "nrl_patches" / "docs" / ("patches.md" if patch.id in PATCHES else "limits.md")
    row = re.search(rf"^\| `{re.escape(patch.id)}` \|.*\| ([^|]*) \|$", file.read_text(), re.MULTILINE)
    assert row is not None
    assert row[1] == in_words(patch, EVIDENCE)


def test_explain_quotes_the_evidence():
    done = run(
        "import runpy, sys\n"
        "sys.argv = ['nrl-patches', 'explain', 'transformers.gemma4_kv_sharing_needs_cache']\n"
        "runpy.run_module('nrl_patches', run_name='__main__')"
    )
    assert "evidence    seen in 5.5.0, 5.5.1; gone in 5.5.2; measured 20" in done.stdout


def test_the_nightly_workflow_runs_the_command_as_it_is():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "matrix.yml").read_text(encoding="utf-8"))
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as a boolean.
    steps = {step["name"]: step for step in workflow["jobs"]["matrix"]["steps"] if "name" in step}
    lines = [line.strip() for line in steps["Measure what is new"]["run"].splitlines() if "nrl-patches" in line]
    first, second = (line.partition(" | ")[0].split() for line in lines)
    assert first == second, "the second run measures what the first one has declared"
    words = first
    assert "--update" in words
    assert words[:2] == ["nrl-patches", "matrix"]
    context = matrix.make_context("matrix", words[2:])  # Raises what the command would.
    assert str(context.params["output"]) == steps["Keep the report"]["with"]["path"]
    assert str(context.params["folder"] / "matrix.json") == steps["Keep what was measured"]["with"]["path"]
