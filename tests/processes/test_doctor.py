"""``nrl-patches doctor`` names, one by one, what would leave a process unpatched."""

import json
import os
import re
import subprocess
import sys
import venv

import pytest
from package_copy import Copy
from standins import ADD_ONE

from nrl_patches import __version__
from nrl_patches.processes.doctor import check_vllm_plugins
from nrl_patches.processes.doctor_interpreters import check_interpreter


def doctor(copy, *args, **environ):
    """Return what the doctor found, and its exit code; every finding has all three parts."""
    quick = ("--no-imports",) if "--imports" not in args else ()
    args = [str(arg) for arg in args if arg != "--imports"]
    done = copy.run("nrl_patches", "doctor", "--json", *quick, *args, **environ)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    for finding in found:
        assert finding["subject"]
        assert finding["found"]
        assert finding["next_step"]
    return found, done.returncode


def only(copy, *args, **environ):
    (finding,), code = doctor(copy, *args, **environ)
    assert code == int(finding["unpatched"])
    return finding


@pytest.fixture(autouse=True)
def _installed(copy, monkeypatch):
    # The metadata of the environment, which the copy shares, may be of another version than this checkout.
    text = f"Metadata-Version: 2.1\nName: nrl-patches\nVersion: {__version__}\n"
    copy.write(f"nrl_patches-{__version__}.dist-info/METADATA", text)
    plugin = "[vllm.general_plugins]\nnrl-patches = nrl_patches_hosts.vllm:plugin\n"
    startup = "[nrl_patches.startup]\nvllm = nrl_patches_hosts.startup:startup\n"
    copy.write(f"nrl_patches-{__version__}.dist-info/entry_points.txt", plugin + startup)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


@pytest.fixture
def installed(tmp_path_factory):
    """A directory in which this project is alone on the path: no editable installation behind the copy."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def test_nothing_to_find(copy):
    done = copy.run("nrl_patches", "doctor")
    nothing, looked, age = done.stdout.splitlines()
    assert (done.returncode, nothing) == (0, "Nothing found that would leave a process unpatched.")
    assert re.fullmatch(r"The targets of 1 patch were imported \(\d+\.\d s\): standin\.count\.", looked)
    assert re.match(r"Last measured \d+ days? ago \(20..-..-..\); the newest releases then: ", age)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"guard": "lambda original: 'is different'"}, "drifted: standin.count: expected "),
        ({"target": "standin.core:moved"}, "drifted: standin.count: expected "),
        ({"fix": "raise LookupError"}, "failed: standin.count: expected its fix to be installed; found LookupError"),
    ],
)
def test_a_patch_that_the_installed_release_does_not_take(copy, fields, found):
    copy.patch(**fields)
    finding = only(copy, "--imports")
    assert (finding["subject"], finding["unpatched"]) == ("import of the targets: standin.count", True)
    assert finding["found"].startswith(found)


def test_without_imports_it_says_that_it_has_not_looked(copy):
    copy.patch(guard="lambda original: 'is different'")
    done = copy.run("nrl_patches", "doctor", "--no-imports")
    assert (done.returncode, done.stdout.splitlines()[1:-1]) == (
        0,
        ["No target was imported, as --no-imports asks for."],
    )


def test_a_target_whose_module_is_gone_is_never_patched(copy):
    copy.patch(target="standin.elsewhere:count")
    finding = only(copy, "--imports")
    assert (finding["subject"], finding["unpatched"]) == ("standin.elsewhere", True)
    assert "so these are never applied: standin.count" in finding["found"]


def test_a_copy_that_the_upstream_package_has_made_of_its_own(copy):
    copy.write("standin/core.py", "import functools\ndef count():\n    return 1\nkept = functools.partial(count)\n")
    finding = only(copy, "--imports")
    assert finding["found"] == "could not reach 1 reference(s) to count: a partial"
    assert "import nrl_patches first" not in finding["next_step"]


@pytest.mark.parametrize(
    ("core", "found", "unpatched"),
    [
        (
            "raise ImportError('no operators')",
            "standin.count could not be checked: ImportError: no oper",
            False,
        ),
        ("raise SystemExit(0)", "standin.count could not be checked: SystemExit: 0", False),
        (
            "import os\nos.kill(os.getpid(), 11)",
            "that the process was killed by SIGSEGV; not looked at: standin.count",
            True,
        ),
    ],
)
def test_a_target_that_cannot_be_imported_is_said_to_be_unseen(copy, core, found, unpatched):
    copy.write("standin/core.py", core)
    finding = only(copy, "--imports")
    assert found in finding["found"]
    assert finding["unpatched"] is unpatched


def test_one_line_per_finding(copy):
    done = copy.run("nrl_patches", "doctor", VLLM_PLUGINS="other", NRL_PATCHES="0")
    assert done.returncode == 1
    assert done.stdout.partition("Last measured ")[0] == (
        "problem: NRL_PATCHES: found '0', which switches all off; next step: unset it\n"
        "problem: VLLM_PLUGINS: found 'other', which excludes nrl-patches: vLLM's processes run unpatched; "
        "next step: VLLM_PLUGINS=other,nrl-patches, or unset it\n"
        "No target was imported: no patch that is switched on is about an installed release.\n"
    )


@pytest.mark.parametrize("value", ["", "other", "nrl_patches", "other, nrl-patches"])
def test_vllm_plugins_that_exclude_ours(value):
    # vLLM splits at commas and strips nothing; an empty value excludes everything.
    (finding,) = check_vllm_plugins({"VLLM_PLUGINS": value})
    assert (finding.subject, finding.unpatched) == ("VLLM_PLUGINS", True)


def test_vllm_plugins_that_include_ours():
    assert check_vllm_plugins({"VLLM_PLUGINS": "other,nrl-patches"}) == []


def test_all_patches_switched_off_one_by_one(copy):
    finding = only(copy, NRL_PATCHES_DISABLE="*")
    assert (finding["subject"], finding["unpatched"]) == ("standin.count", True)


def test_switches(copy):
    copy.patch("other", opt_out="NRL_DISABLE_OTHER")
    off = only(copy, NRL_DISABLE_COUNT="1")
    assert (off["subject"], off["found"]) == ("standin.count", "that it is disabled: NRL_DISABLE_COUNT=1")
    typo = only(copy, NRL_PATCHES_DISABLE="standin.cuont")
    assert typo["subject"] == "NRL_PATCHES_DISABLE"
    assert "did you mean standin.count?" in typo["next_step"]
    assert not off["unpatched"]
    assert not typo["unpatched"]


def test_a_patch_file_that_cannot_be_loaded(copy):
    file = copy.write("nrl_patches/patches/standin/broken.py", "raise KeyError('mine')\n")
    finding = only(copy)
    assert (finding["subject"], finding["unpatched"]) == ("standin.broken", True)
    assert finding["found"] == f"that it cannot be loaded: {file}: KeyError: 'mine', not a patch file"
    assert only(copy, NRL_PATCHES_DISABLE="standin.count,standin.broken")["subject"] == "standin.count"


def test_autowrapt_asked_for_but_missing(copy):
    blocked = """
import importlib.util as u, sys
find = u.find_spec
u.find_spec = lambda n: None if n == "autowrapt" else find(n)
sys.modules.pop("autowrapt.bootstrap", None)
"""
    copy.write("sitecustomize.py", blocked)
    assert doctor(copy) == ([], 0)
    finding = only(copy, AUTOWRAPT_BOOTSTRAP="mine,nrl_patches.startup")
    assert finding["subject"] == "AUTOWRAPT_BOOTSTRAP"
    assert "autowrapt is not installed" in finding["found"]


def test_autowrapt_whose_startup_file_is_not_executed(copy):
    copy.write("sitecustomize.py", "import sys\nsys.modules.pop('autowrapt.bootstrap', None)")
    finding = only(copy, AUTOWRAPT_BOOTSTRAP="nrl_patches.startup")
    assert finding["subject"] == "AUTOWRAPT_BOOTSTRAP"
    assert "but its startup file is not executed: autowrapt is on the path, but not installed in" in finding["found"]
    (here, other), _ = doctor(copy, "--python", sys.executable, AUTOWRAPT_BOOTSTRAP="nrl_patches.startup")
    assert here == finding
    assert other["subject"] == sys.executable
    assert "asks for nrl_patches.startup, but its startup file is not executed: " in other["found"]
    assert f'{sys.executable} -I -m pip install "nrl-patches[run]==' in other["next_step"]


def test_two_versions_on_the_path(copy):
    second = Copy(copy.write("second/empty", "").parent)
    init = second.folder / "nrl_patches" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, "9.9"))
    path = os.pathsep.join([str(copy.folder), str(second.folder)])
    found, code = doctor(copy, PYTHONPATH=path)
    assert code == 1
    assert f"{__version__} in {copy.folder}/nrl_patches, 9.9 in {second.folder}/nrl_patches" in found[0]["found"]


def test_metadata_of_another_version(copy):
    copy.write("nrl_patches-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: nrl-patches\nVersion: 9.9\n")
    finding = only(copy)
    assert f"version {__version__}, where the metadata says" in finding["found"]
    assert "9.9" in finding["found"]


def test_metadata_without_a_version(copy):
    copy.write("nrl_patches-9.9.dist-info/METADATA", "")
    assert f"where the metadata says {__version__}, nothing" in only(copy)["found"]


def test_a_path_that_cannot_be_looked_into(copy):
    assert doctor(copy, PYTHONPATH=os.pathsep.join([str(copy.folder), "x" * 300])) == ([], 0)


def test_a_source_tree_that_is_not_installed(copy):
    code = """
import importlib.metadata, json, sys
importlib.metadata.entry_points = lambda group: ()
from nrl_patches.processes.doctor import check_entry_points
(finding,) = check_entry_points()
print(finding)
"""
    done = copy.python("-c", code)
    assert "found no entry points of nrl-patches: it is on the path, but not installed" in done.stdout, done.stderr


def test_an_environment_without_the_package(copy, installed):
    # A worker's environment does not see the path of this process.
    script = f"import sys\nsys.path.insert(0, {str(copy.folder)!r})\nfrom nrl_patches.processes import doctor_interpreters as doctor\n"
    asked = f"print(*doctor.check_interpreter({str(installed)!r}, {{}}), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script + asked], capture_output=True, text=True, check=True, cwd="/", timeout=60
    )
    assert done.stdout == (
        f"problem: {installed}: found no nrl_patches; next step: "
        f'{installed} -m pip install "nrl-patches=={__version__}"\n'
    )


def test_an_environment_with_another_version(copy, tmp_path):
    other = tmp_path / "python"
    answer = {"package": "/x", "version": "9.9", "error": "", "plugins": []}
    other.write_text(f"#!/bin/sh\necho noise\necho '{json.dumps(answer)}'\n")
    other.chmod(0o755)
    (version, plugin), code = doctor(copy, "--python", other)
    assert code == 1
    assert version["found"] == f"nrl_patches 9.9, not {__version__} as here"
    assert plugin["found"] == "nrl_patches, but no entry point that vLLM could load"


def test_an_environment_in_which_the_import_fails(copy, tmp_path):
    other = tmp_path / "python"
    answer = {"package": "/x", "version": None, "error": "ModuleNotFoundError: no wrapt", "plugins": []}
    other.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    other.chmod(0o755)
    finding = only(copy, "--python", other)
    assert finding["found"] == "that importing nrl_patches raises ModuleNotFoundError: no wrapt"


@pytest.mark.parametrize(
    ("autowrapt", "startup", "lacking"),
    [
        (False, True, "no autowrapt"),
        (True, False, "no entry points for it"),
        (True, True, "its startup file is not executed: autowrapt is on the path, but not installed in site-packages"),
    ],
)
def test_an_environment_that_run_cannot_reach(tmp_path, autowrapt, startup, lacking):
    other = tmp_path / "python"
    answer = {"package": "/x", "version": __version__, "error": "", "plugins": ["nrl-patches"]}
    answer |= {"autowrapt": autowrapt, "startup": startup, "executed": False}
    other.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    other.chmod(0o755)
    assert check_interpreter(str(other), {}) == []
    (finding,) = check_interpreter(str(other), {"AUTOWRAPT_BOOTSTRAP": "nrl_patches.startup"})
    assert finding.found == f"that AUTOWRAPT_BOOTSTRAP asks for nrl_patches.startup, but {lacking}"
    assert "nrl-patches[run]==" in finding.next_step


@pytest.mark.parametrize("program", ["/no/such/python", "/bin/false", "/bin/echo"])
def test_what_is_no_interpreter(program):
    (finding,) = check_interpreter(program, {})
    assert finding.found.startswith("no answer: ")


def test_the_same_interpreter_is_fine(copy):
    assert doctor(copy, "--python", sys.executable) == ([], 0)


def test_the_activated_environment_is_looked_into(copy, installed):
    finding = only(copy, VIRTUAL_ENV=str(installed.parents[1]))
    assert finding["subject"] == str(installed)


def test_a_running_process(copy):
    code = "import nrl_patches, standin.core, sys; print(flush=True); sys.stdin.read()"
    copy.patch(guard="lambda original: 'is different'")
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        env=copy.environ(), cwd=copy.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    job.stdout.readline()
    finding = only(copy, "--pid", job.pid)
    assert finding["subject"] == f"process {job.pid}: standin.count"
    assert finding["found"].startswith("drifted: ")
    job.communicate(timeout=60)
    gone = only(copy, "--pid", job.pid)
    assert gone["found"] == "there is no such process"


FRAMEWORK = """
import functools, standin.core
{code}
"""


@pytest.mark.parametrize(
    ("code", "found", "unpatched"),
    [
        ("kept = functools.partial(standin.core.count)", "could not reach 1 reference(s) to count: a partial", True),
        ("standin.core.count = lambda: 1", "on top of framework.<lambda>, which had replaced count before", False),
        ("from standin.core import count", None, False),
    ],
)
def test_a_framework_that_is_imported_before(copy, code, found, unpatched):
    copy.write("framework.py", FRAMEWORK.format(code=code))
    if found is None:
        assert doctor(copy, "--import", "framework") == ([], 0)
        return
    finding = only(copy, "--import", "framework")
    assert finding["subject"] == "import framework, nrl_patches: standin.count"
    assert (finding["found"], finding["unpatched"]) == (found, unpatched)


def test_a_framework_that_cannot_be_imported(copy):
    finding = only(copy, "--import", "no_such_framework")
    assert finding["found"] == "no answer: ModuleNotFoundError: No module named 'no_such_framework'"


def test_a_framework_of_the_current_directory_is_imported_only_where_the_path_says_so(copy, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "my_framework.py").write_text("raise LookupError('executed')")
    said = {}
    for path in (copy.folder, f".{os.pathsep}{copy.folder}"):
        done = subprocess.run(
            [sys.executable, "-m", "nrl_patches", "doctor", "--no-imports", "--json", "--import", "my_framework"],
            env=copy.environ(PYTHONPATH=str(path)), cwd=here, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        (finding,) = json.loads(done.stdout)
        said[str(path)[0]] = (finding["found"], finding["next_step"][:12])
    assert said["/"] == ("no answer: ModuleNotFoundError: No module named 'my_framework'", "PYTHONPATH=.")
    assert said["."][0] == "no answer: LookupError: executed"


def test_checks_do_not_change_what_they_look_at(copy):
    copy.patch(fix=ADD_ONE + "\n")
    before = sorted(copy.folder.rglob("*"))
    doctor(copy, "--import", "standin.core", "--python", sys.executable)
    assert sorted(copy.folder.rglob("*")) == before
