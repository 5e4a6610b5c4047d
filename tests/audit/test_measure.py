"""``nrl-patches audit --measure``: what nobody has measured is measured in overlays, and answered then."""

import json

import pytest
from matrix.local_index import serve
from matrix.test_matrix_command import ID, Bench
from package_copy import OFF_BY_ONE, RIGHT


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.declare("standin>=1.2,<=1.4")
    with serve(made.index) as made.address:
        yield made


def audit(bench, version, *args):
    bench.write("requirements.txt", f"standin=={version}\n")
    done = bench.run("nrl_patches", "audit", "requirements.txt", "--json", *args, **bench.variables())
    assert done.returncode in {0, 1}, done.stderr
    ((row,),) = (e["defects"] for e in json.loads(done.stdout)["environments"])
    return done.returncode, row


@pytest.mark.parametrize(
    ("core", "code", "hit", "repair"),
    [(OFF_BY_ONE, 1, "hit", "repaired if forced"), (RIGHT, 0, "not hit", "needless")],
)
def test_it_answers_what_was_unmeasured_by_measuring_it(bench, core, code, hit, repair):
    bench.index.add("1.8", core)
    returncode, row = audit(bench, "1.8")
    assert (returncode, row["id"], row["hit"]) == (1, ID, "unmeasured")
    assert "standin 1.8 is newer than 1.4, the newest measured, affected" in row["reason"]
    assert "audit --measure" in row["advice"]
    returncode, row = audit(bench, "1.8", "--measure")
    assert (returncode, row["hit"], row["repair"]) == (code, hit, repair)
    assert "; measured 20" in row["reason"]
    assert set(bench.probed()) == {"1.8"}
    # What was measured is kept, and not measured again.
    assert audit(bench, "1.8", "--measure")[1]["hit"] == hit
    assert bench.probed() == []


def test_a_release_that_cannot_be_installed_stays_unmeasured(bench):
    returncode, row = audit(bench, "1.9", "--measure")
    assert (returncode, row["hit"]) == (1, "unmeasured")
