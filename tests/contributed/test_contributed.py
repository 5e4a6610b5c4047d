"""Patches of other parties: a distribution that contributes some, and a package that is registered from code."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from package_copy import Copy

from nrl_patches.contributed import contributions, owner_of

HERE = Path(__file__).parent
ID = "acme_patches/standin.off_by_one"


class Installed(Copy):
    """A copy of this package with Acme's patches installed into the same folder."""

    def __init__(self, folder):
        super().__init__(folder)
        self.upstream()
        shutil.copytree(HERE / "acme" / "acme_patches", folder / "acme_patches")
        self.entry_points()

    def entry_points(self, *lines):
        lines = lines or ("standin = acme_patches", "vllm = acme_patches")
        text = "\n".join(["[console_scripts]", "x = y:z", "", "[nrl_patches.patches]", *lines, ""])
        self.write("acme_patches-1.0.dist-info/entry_points.txt", text)
        self.write("acme_patches-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme-patches\nVersion: 1.0\n")

    def run_code(self, code, **environ):
        done = self.python("-c", code, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


COUNT = "import nrl_patches\nfrom standin.core import count\nprint(count())"


@pytest.fixture
def acme(tmp_path):
    return Installed(tmp_path)


def command(copy, *args, **environ):
    return copy.run("nrl_patches", *args, **environ)


def test_an_installed_distribution_is_applied_without_a_word_of_code(acme):
    assert acme.run_code(COUNT) == "2"
    code = f"import nrl_patches, standin.core\nprint(nrl_patches.status()[{ID!r}])"
    assert acme.run_code(code) == f"{ID}: applied (standin 1.0 is in standin<2)"


def test_nothing_of_it_is_imported_before_its_target(acme):
    code = "import sys, nrl_patches\nprint({'acme_patches', 'packaging', 'wrapt'} & sys.modules.keys())"
    assert acme.run_code(code) == "set()"


@pytest.mark.parametrize(
    "environ",
    [
        {"ACME_PATCHES_DISABLE_OFF_BY_ONE": "1"},
        {"NRL_PATCHES_DISABLE": "acme_patches/*"},
        {"NRL_PATCHES_ONLY": "transformers.*"},
        {"NRL_PATCHES": "0"},
    ],
)
def test_it_is_switched_off_as_any_other(acme, environ):
    assert acme.run_code(COUNT, **environ) == "1"


def test_it_is_undone_and_applied_again(acme):
    code = (
        "import nrl_patches\nfrom standin import core\n"
        f"with nrl_patches.undo({ID!r}):\n    print(core.count())\nprint(core.count())"
    )
    assert acme.run_code(code).split() == ["1", "2"]


def test_every_command_knows_it(acme):
    assert ID in command(acme, "list").stdout
    assert "switch off  ACME_PATCHES_DISABLE_OFF_BY_ONE=1" in command(acme, "explain", ID).stdout
    assert f"pending       {ID}" in command(acme, "status").stdout
    assert '"present": true' in command(acme, "probe", ID, "--json", NRL_PATCHES="0").stdout
    tripwires = command(acme, "tripwires", ID)
    assert tripwires.returncode == 0
    assert f"needed        {ID}" in tripwires.stdout
    assert f'"id": "{ID}"' in command(acme, "audit", "--json").stdout
    assert acme.pytest("--nrl-tripwires", "-q").stdout.count("passed") == 1


def test_a_spawned_child_has_it(acme):
    shutil.copy(HERE / "spawned.py", acme.folder)
    done = acme.python("spawned.py")
    assert done.stdout.strip() == "2", done.stderr


def test_a_broken_contribution_hurts_nobody_else(acme):
    acme.patch()
    acme.write("acme_patches/standin/broken.py", "1 / 0\n")
    done = acme.python("-c", "import nrl_patches\nfrom standin.core import count\nprint(count())")
    assert done.stdout.strip() == "3"  # Both patches, one on top of the other.
    assert "acme_patches/standin.broken: expected a patch file" in done.stderr
    assert "reinstall acme_patches; all other patches are applied" in done.stderr
    (acme.folder / "acme_patches" / "__init__.py").write_text("raise SystemError('no')\n")
    done = acme.python("-c", "import nrl_patches\nfrom standin.core import count\nprint(count())")
    assert done.stdout.strip() == "2"
    assert (
        "acme_patches/*: expected a patch file; found that it cannot be loaded: acme_patches: SystemError: no"
        in done.stderr
    )


def test_an_opt_out_carries_the_name_of_its_distribution(acme):
    file = acme.folder / "acme_patches" / "standin" / "off_by_one.py"
    file.write_text(file.read_text().replace("ACME_PATCHES_DISABLE_OFF_BY_ONE", "NRL_DISABLE_OFF_BY_ONE"))
    done = acme.python("-c", "import nrl_patches, standin.core")
    assert "opt_out: needs a variable named ACME_PATCHES_DISABLE_…, not 'NRL_DISABLE_OFF_BY_ONE'" in done.stderr


def test_two_patches_of_one_target_are_named_in_their_order(acme):
    acme.patch()
    done = command(acme, "doctor", "--no-imports")
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if "standin.core:count" in line)
    assert line.startswith(f"note: {ID}: found that standin.count patches standin.core:count too, and is applied first")
    assert "for the same defect (https://example.org/issues/1): one of the two is superfluous" in line
    assert "ACME_PATCHES_DISABLE_OFF_BY_ONE=1 keeps standin.count only" in line


REGISTERED = "import nrl_patches\n{}\nfrom standin import core\nprint(core.count())\n{}\nprint(core.count())"


@pytest.mark.parametrize(("before", "after", "counts"), [("register", "", "2 2"), ("", "register", "1 2")])
def test_a_package_is_registered_from_code_before_or_after_its_target(acme, before, after, counts):
    shutil.rmtree(acme.folder / "acme_patches-1.0.dist-info")
    calls = ["nrl_patches.register('acme_patches')" if when else "" for when in (before, after)]
    assert acme.run_code(REGISTERED.format(*calls)).split() == counts.split()


def test_what_is_registered_reaches_children_and_tripwires_by_a_variable(acme):
    shutil.rmtree(acme.folder / "acme_patches-1.0.dist-info")
    code = (
        "import subprocess, sys, nrl_patches\nnrl_patches.register('acme_patches')\n"
        f"print(subprocess.run([sys.executable, '-c', {COUNT!r}], capture_output=True, text=True).stdout)"
    )
    assert acme.run_code(code) == "2"
    done = command(acme, "tripwires", ID, NRL_PATCHES_PACKAGES="acme_patches")
    assert f"needed        {ID}" in done.stdout


def test_registering_twice_does_nothing_and_nonsense_is_said(acme):
    code = (
        "import nrl_patches\nnrl_patches.register('acme_patches')\nnrl_patches.register('acme_patches')\n"
        "nrl_patches.register('nothing.of.that.name')\nprint([i for i in nrl_patches.status() if '/' in i])"
    )
    done = acme.python("-c", code)
    assert done.stdout.strip() == str(sorted([ID, "acme_patches/vllm.harmless", "nothing/*"]))
    assert done.stderr.count("nothing/*: expected a patch file") == 1
    strict = acme.python("-c", code, NRL_PATCHES_STRICT="1")
    assert "SettingsError: nothing/*" in strict.stderr


def test_metadata_is_read_as_it_lies(tmp_path):
    (tmp_path / "a.dist-info").mkdir()
    (tmp_path / "Odd.Name-1.0.dist-info").mkdir()
    (tmp_path / "Odd.Name-1.0.dist-info" / "entry_points.txt").write_bytes(
        b"[other]\nx = y\n[nrl_patches.patches]\n# no\nray=odd.patches:ignored [extra]\n\xff = broken\n[more]\nz = a\n"
    )
    (tmp_path / "b.dist-info").write_text("a file")
    found = [(c.owner, c.package, c.target) for c in contributions([str(tmp_path), str(tmp_path / "missing")])]
    assert found == [("odd_name", "odd.patches", "ray"), ("odd_name", "broken", "\ufffd")]
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a.py", "")
    assert contributions([str(tmp_path / "archive.zip")]) == []
    assert owner_of("NeMo-RL") == "nemo_rl"


def test_it_has_evidence_of_its_own(acme):
    """A release beyond the newest measured one is recognised by what Acme has kept of its code."""
    file = acme.folder / "acme_patches" / "standin" / "off_by_one.py"
    file.write_text(file.read_text().replace('affected="standin<2"', 'affected="standin>=0.5,<=0.9"'))
    status = f"import nrl_patches, standin.core\nprint(nrl_patches.status()[{ID!r}].state)"
    assert acme.run_code(status) == "unmeasured"
    code = "from nrl_patches.engine.upstream_code import digest\nprint(digest('standin.core:count'))"
    kept = {
        "schema": 1,
        "releases": {},
        "measurements": {},
        "code": {"standin.core:count": {"0.9": acme.run_code(code)}},
    }
    acme.write("acme_patches/matrix.json", json.dumps(kept))
    assert acme.run_code(status) == "applied"
    assert "the code is that of 0.9" in command(acme, "status").stdout
    assert command(acme, "explain", ID).returncode == 0
