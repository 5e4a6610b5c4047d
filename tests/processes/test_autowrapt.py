"""``nrl-patches run``: programs whose code cannot be changed, and what they start."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from releases import results, run_on
from standins import ROOT

from nrl_patches.bootstrap import packages
from nrl_patches.engine.registry import load

GEMMA4 = "transformers.gemma4_kv_sharing_needs_cache"
GROUP = "nrl_patches.startup"


@pytest.fixture
def covered(copy):
    """The copy, with its stand-in among the packages that autowrapt calls back for."""
    copy.write("beside-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: beside\nVersion: 1.0\n")
    copy.write("beside-1.0.dist-info/entry_points.txt", f"[{GROUP}]\nstandin = nrl_patches_hosts.startup:startup\n")
    startup = copy.folder / "nrl_patches" / "hosts" / "startup" / "sitecustomize.py"
    startup.write_text(startup.read_text().replace('"transformers", ', '"transformers", "standin", '))
    return copy


def run(copy, *command, **environ):
    return copy.run("nrl_patches", "run", "--", *command, **environ)


COUNT = "from standin.core import count; print(count())"


def test_the_command_and_its_children(covered):
    program = f"""
import os, subprocess, sys
{COUNT}
import nrl_patches
print(nrl_patches.activated_by, flush=True)
subprocess.run([sys.executable, "-c", "{COUNT}"], check=True)
subprocess.run(["sh", "-c", "exec " + sys.executable + " -c '{COUNT}'"], check=True)
"""
    done = run(covered, sys.executable, "-c", program)
    assert done.stdout == "2\nstartup\n2\n2\n", done.stderr


def test_without_it_nothing_is_patched(covered):
    assert covered.python("-c", COUNT).stdout == "1\n"


def test_the_switches_travel(covered):
    assert run(covered, sys.executable, "-c", COUNT, NRL_DISABLE_COUNT="1").stdout == "1\n"


def test_a_process_that_imports_no_target_does_not_even_import_wrapt(covered):
    # tests/benchmarks/process_cost.py says what that saves.
    asked = "import sys; print(*sorted(n for n in sys.modules if n.startswith(('autowrapt', 'nrl_patches', 'wrapt'))))"
    assert run(covered, sys.executable, "-c", asked).stdout == "autowrapt autowrapt.bootstrap\n"


def test_without_that_saving_it_works_the_same(covered):
    # An interpreter that ignores PYTHONPATH sees only the variable; here it sees a path without our folder.
    environ = {"AUTOWRAPT_BOOTSTRAP": GROUP}
    assert covered.python("-c", COUNT, **environ).stdout == "2\n"
    asked = "import sys; print('wrapt' in sys.modules, 'nrl_patches' in sys.modules)"
    assert covered.python("-c", asked, **environ).stdout == "True False\n"


def test_other_groups_are_registered_at_once(covered):
    covered.write("theirs.py", "def hook(module): print('theirs')\n")
    covered.write("theirs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    covered.write("theirs-1.0.dist-info/entry_points.txt", "[theirs]\ncolorsys = theirs:hook\n")
    done = run(covered, sys.executable, "-c", f"import colorsys; {COUNT}", AUTOWRAPT_BOOTSTRAP="theirs")
    assert done.stdout == "theirs\n2\n", done.stderr


@pytest.mark.parametrize("code", ["print('mine')", "raise ImportError('mine')", "raise KeyError('mine')"])
def test_the_user_s_own_sitecustomize_is_executed(covered, code):
    shown = "import sys; print(getattr(sys.modules.get('sitecustomize'), '__file__', 'none'))"
    covered.write("mine/sitecustomize.py", code)
    path = os.pathsep.join([str(covered.folder / "mine"), str(covered.folder)])
    plain = covered.python("-c", shown, PYTHONPATH=path)
    done = run(covered, sys.executable, "-c", f"{shown}; {COUNT}", PYTHONPATH=path)
    # `run` is a Python of its own, which says it too.
    assert done.stdout == plain.stdout.replace("mine\n", "mine\nmine\n") + "2\n"
    assert done.stderr.splitlines()[-2:] == plain.stderr.splitlines()[-2:]


def test_without_a_sitecustomize_of_the_user(covered):
    shown = "import sys; print([p for p in sys.path if 'startup' in p], 'sitecustomize' in sys.modules)"
    done = run(covered, sys.executable, "-c", shown)
    assert (done.stdout, done.stderr) == ("[] False\n", "")


def test_nested(covered):
    shown = ("sh", "-c", "echo $PYTHONPATH")
    once = run(covered, *shown, PYTHONPATH=f"{covered.folder}::/other").stdout
    assert once == f"{covered.folder}/nrl_patches/hosts/startup:{covered.folder}::/other\n"
    inner = run(covered, sys.executable, "-m", "nrl_patches", "run", "--", *shown).stdout
    assert inner == f"{covered.folder}/nrl_patches/hosts/startup:{covered.folder}\n"


def test_arguments_input_and_exit_code_pass_through(covered):
    done = run(covered, "sh", "-c", 'printf "%s|" "$@"; exit 7', "--", "--help", "a b", "-x")
    assert (done.returncode, done.stdout, done.stderr) == (7, "--help|a b|-x|", "")


def test_it_is_the_same_process(covered):
    # So signals need no passing on, and whoever started it sees the command's own death.
    process = subprocess.Popen(
        [sys.executable, "-m", "nrl_patches", "run", "--", "sh", "-c", "echo $$; exec sleep 60"],
        env=covered.environ(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(process.stdout.readline()) == process.pid
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_signals_that_python_ignores_are_not_ignored_by_the_command(covered):
    done = run(covered, "sh", "-c", "grep SigIgn /proc/self/status")
    plain = subprocess.run(["/bin/grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True)
    assert done.stdout == plain.stdout


def test_what_the_user_bootstraps_is_kept(covered):
    shown = ("sh", "-c", "echo $AUTOWRAPT_BOOTSTRAP")
    assert run(covered, *shown).stdout == f"{GROUP}\n"
    assert run(covered, *shown, AUTOWRAPT_BOOTSTRAP="mine, yours").stdout == f"mine,yours,{GROUP}\n"
    assert run(covered, *shown, AUTOWRAPT_BOOTSTRAP=GROUP).stdout == f"{GROUP}\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("no-such-command", 127, "no-such-command: expected a command; found none with that name; next step: "),
        ("./broken", 126, "broken: expected a program; found [Errno 8] Exec format error"),
        ("./nrl_patches", 126, "./nrl_patches: expected a program; found a file that is not executable"),
        ("./homeless", 126, "homeless: expected an interpreter; found [Errno 2] No such file or directory"),
    ],
)
def test_commands_that_cannot_be_run(covered, command, code, message):
    covered.write("broken", "\x7fELF\0").chmod(0o755)
    covered.write("homeless", "#!/no/such/python\n").chmod(0o755)
    done = run(covered, command)
    assert done.returncode == code
    assert message in done.stderr


def test_a_script_without_a_first_line_is_one_of_the_shell(covered):
    covered.write("tool", 'echo "$@"\n').chmod(0o755)
    done = run(covered, "./tool", "a b", "-x")
    assert done.stdout == "a b -x\n", done.stderr


def test_a_script_whose_name_begins_with_python_is_executed_once(covered):
    script = covered.write("python-train.sh", "#!/bin/sh\necho trained >>trained\n")
    script.chmod(0o755)
    assert run(covered, script).returncode == 0
    assert (covered.folder / "trained").read_text() == "trained\n"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The interpreter of a virtual environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("kind", ["interpreter", "script", "env"])
def test_an_environment_without_autowrapt(covered, bare, kind):
    script = covered.write("tool", f"#!{bare} -u\n" if kind == "script" else "#!/usr/bin/env python\n")
    script.chmod(0o755)
    environ = {"PATH": os.pathsep.join([str(bare.parent), os.environ["PATH"]])} if kind == "env" else {}
    done = run(covered, bare if kind == "interpreter" else script, **environ)
    assert done.returncode == 1
    assert f"{bare}: expected nrl_patches and autowrapt; found no autowrapt; next step: " in done.stderr
    assert f'{bare} -I -m pip install "nrl-patches[run]"' in done.stderr


def test_an_autowrapt_whose_startup_file_is_not_executed(covered, bare):
    shutil.copytree(Path(importlib.util.find_spec("autowrapt").origin).parent, covered.folder / "autowrapt")
    done = run(covered, bare, "-c", COUNT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: {bare}: expected nrl_patches and autowrapt; found autowrapt, but its startup file is not executed: "
        "autowrapt is on the path, but not installed in site-packages; "
        f'next step: {bare} -I -m pip install "nrl-patches[run]"\n'
    )


def test_an_environment_without_autowrapt_is_fine_where_nothing_is_to_be_patched(covered, bare):
    done = run(covered, bare, "-c", COUNT, NRL_PATCHES="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_failing_import_fails_the_target_under_strict_only(covered):
    program = f"from nrl_patches_hosts import door\n{COUNT}\nprint(door.failure.splitlines()[-1])"
    script = covered.write("program.py", program)
    environ = covered.environ(AUTOWRAPT_BOOTSTRAP=GROUP)  # As `run` leaves it; it could not be imported itself.
    covered.write("nrl_patches/errors.py", "raise KeyError('half an upgrade')")
    lenient = covered.python(script, **environ)
    assert lenient.stdout == "1\nKeyError: 'half an upgrade'\n", lenient.stderr
    assert "nrl_patches (startup): expected to be imported; found KeyError: 'half an upgrade'" in lenient.stderr
    strict = covered.python(script, **environ, NRL_PATCHES_STRICT="1")
    assert strict.returncode == 1
    assert strict.stderr.rstrip().endswith("KeyError: 'half an upgrade'")


def test_strict_fails_every_import_of_the_target_and_not_only_the_first(covered):
    program = """
for attempt in range(2):
    try:
        import standin
    except Exception as error:
        print(type(error).__name__)
"""
    environ = covered.environ(AUTOWRAPT_BOOTSTRAP=GROUP, NRL_PATCHES_STRICT="1", NRL_PATCHES_DISABLE="typo")
    done = covered.python("-c", program, **environ)
    assert done.stdout == "SettingsError\nSettingsError\n", done.stderr


@pytest.mark.parametrize("value", ["0", " Off "])
def test_off_imports_nothing_of_ours(covered, value):
    program = """
import nrl_patches_hosts.vllm, standin, sys
nrl_patches_hosts.vllm.plugin()
print(sorted(sys.modules.keys() & {"nrl_patches", "wrapt"}))
"""
    # The package itself may be broken then; `run` could not be executed.
    environ = {"AUTOWRAPT_BOOTSTRAP": GROUP, "NRL_PATCHES": value, "NRL_PATCHES_STRICT": "1"}
    path = os.pathsep.join([str(covered.folder / "nrl_patches" / "hosts" / "startup"), str(covered.folder)])
    done = covered.python("-c", program, PYTHONPATH=path, **environ)
    assert done.stdout == "[]\n", done.stderr


def test_a_failing_registration_fails_the_target_under_strict_only(covered):
    covered.write("beside-1.0.dist-info/entry_points.txt", f"[{GROUP}]\nstandin = nrl_patches_hosts.startup:renamed\n")
    lenient = run(covered, sys.executable, "-c", COUNT)
    assert lenient.stdout == "1\n"
    (line,) = lenient.stderr.splitlines()
    assert "expected autowrapt to register its hooks; found AttributeError: " in line
    assert run(covered, sys.executable, "-c", COUNT, NRL_PATCHES_STRICT="1").returncode == 1


@pytest.mark.parametrize("closing", ["exec 2>&-", ":"])
def test_a_failing_registration_that_cannot_be_told_fails_nothing(covered, closing):
    covered.write("beside-1.0.dist-info/entry_points.txt", f"[{GROUP}]\nstandin = nrl_patches_hosts.startup:renamed\n")
    code = f"import sys; sys.stderr and sys.stderr.close(); {COUNT}"
    done = run(covered, "sh", "-c", f'{closing}; exec "$@"', "-", sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """The interpreter of a virtual environment with autowrapt, and nothing of ours."""
    folder = tmp_path_factory.mktemp("lonely")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in ("autowrapt", "wrapt"):
        shutil.copytree(Path(importlib.util.find_spec(name).origin).parent, packages / name)
    (packages / "autowrapt.pth").write_text("import autowrapt; autowrapt.init()\n")
    return folder / "bin" / "python"


def lacking(kind, copy, bare, lonely):
    """Prepare a child's interpreter that lacks something; return it, and what is said of it."""
    if kind == "autowrapt":
        return bare, "found no autowrapt"
    if kind == "its startup file":
        shutil.copytree(Path(importlib.util.find_spec("autowrapt").origin).parent, copy.folder / "autowrapt")
        return bare, "found autowrapt, but its startup file is not executed: it is not installed in site-packages"
    (copy.folder / "beside-1.0.dist-info" / "entry_points.txt").unlink()
    return lonely, "found autowrapt, but no entry points of nrl-patches"


LACKING = pytest.mark.parametrize("kind", ["autowrapt", "its startup file", "our entry points"])


def start_child(python, code):
    return f"import subprocess, sys; sys.exit(subprocess.run([{str(python)!r}, '-c', {code!r}]).returncode)"


@LACKING
@pytest.mark.parametrize("groups", ["", "theirs"])
def test_a_child_s_interpreter_that_lacks_something_says_so_when_it_imports_a_target(
    covered, bare, lonely, kind, groups
):
    python, found = lacking(kind, covered, bare, lonely)
    looks = "from importlib.util import find_spec; find_spec('vllm'); "
    command = ("run", "--", sys.executable, "-c", start_child(python, looks + COUNT))
    done = covered.run("nrl_patches", *command, AUTOWRAPT_BOOTSTRAP=groups)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line == (
        f"nrl_patches (startup): {python}: expected autowrapt to register its hooks; {found}; "
        f'next step: {python} -I -m pip install "nrl-patches[run]"; this process may run without any patch'
    )


@LACKING
def test_and_fails_every_import_of_the_target_under_strict(covered, bare, lonely, kind):
    python, found = lacking(kind, covered, bare, lonely)
    code = f"""
try:
    import standin
except RuntimeError:
    print("refused", flush=True)
{COUNT}
"""
    done = run(covered, sys.executable, "-c", start_child(python, code), NRL_PATCHES_STRICT="1")
    assert (done.returncode, done.stdout) == (1, "refused\n"), done.stderr
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: nrl_patches (startup): ")
    assert found in done.stderr


@LACKING
@pytest.mark.parametrize("strict", ["0", "1"])
def test_and_says_nothing_where_no_target_is_imported(covered, bare, lonely, kind, strict):
    # Many programs look whether vLLM is there, and do without.
    python, _ = lacking(kind, covered, bare, lonely)
    code = "from importlib.util import find_spec; print(find_spec('vllm'), find_spec('vllm'))"
    done = run(covered, sys.executable, "-c", start_child(python, code), NRL_PATCHES_STRICT=strict)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None None\n", "")


def test_and_says_nothing_where_another_path_brought_the_patches(covered):
    code = f"import sys; del sys.modules['autowrapt.bootstrap']; import nrl_patches; {COUNT}"
    done = run(covered, sys.executable, "-c", code, NRL_PATCHES_STRICT="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


@LACKING
def test_and_says_nothing_where_all_is_off(covered, bare, lonely, kind):
    python, _ = lacking(kind, covered, bare, lonely)
    code = start_child(python, COUNT)
    done = run(covered, sys.executable, "-c", code, NRL_PATCHES="0", NRL_PATCHES_STRICT="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_two_threads_that_are_the_first_to_look_for_a_target(covered):
    program = """
import sys
finder = sys.meta_path[0]
# As a thread sees it that has looked at sys.meta_path a moment before the other one changed it.
class Path(list):
    def __contains__(self, other):
        return True
sys.meta_path = Path(other for other in sys.meta_path if other is not finder)
assert finder.find_spec("standin") is None
"""
    done = run(covered, sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr


def test_the_group_names_the_packages_of_all_targets():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition(f'[project.entry-points."{GROUP}"]\n')[2].partition("\n\n")[0]
    named = {line.partition(" = ")[0] for line in section.splitlines()}
    assert named == {fix.module.partition(".")[0] for patch in load() for fix in patch.fixes}
    assert named == packages()  # What `import nrl_patches` waits for.
    startup = (ROOT / "nrl_patches" / "hosts" / "startup" / "sitecustomize.py").read_text()
    assert f"PACKAGES = {tuple(sorted(named))}".replace("'", '"') in startup


def test_loading_an_entry_point_imports_nothing_else(copy):
    # vLLM forgets what the load of a plugin raises, and autowrapt loads ours in processes that never need it.
    code = """
import sys
before = set(sys.modules)
import nrl_patches_hosts.ray, nrl_patches_hosts.startup, nrl_patches_hosts.vllm
print(sorted(set(sys.modules) - before - {"__future__", "typing"} - set(sys.builtin_module_names)))
"""
    done = copy.python("-S", "-c", code)
    new = set(ast.literal_eval(done.stdout))
    assert "nrl_patches_hosts.vllm" in new, done.stderr
    assert not {name for name in new if name.partition(".")[0] in {"nrl_patches", "wrapt", "json", "logging"}}


PROBE = """
import json, os, subprocess, sys
from transformers.models.gemma4 import modeling_gemma4
import nrl_patches
patch = nrl_patches._activation.registry.patches[sys.argv[1]]
status = nrl_patches.status()[patch.id]
print(json.dumps({"present": patch.observe().present, "state": status.state, "activated_by": nrl_patches.activated_by}))
"""


@pytest.mark.xdist_group("transformers==5.5.0")
def test_the_defect_is_gone_in_a_program_that_never_imports_us(tmp_path):
    # The program's own code does not name nrl_patches before the target is there.
    program = tmp_path / "program.py"
    program.write_text(PROBE)
    command = ["run", "--", sys.executable, program, GEMMA4]
    found = results(run_on("transformers==5.5.0", ROOT / "tests" / "run_command.py", *command, fresh=True))
    assert found == {"present": False, "state": "applied", "activated_by": "startup"}
