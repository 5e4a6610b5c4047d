"""What ``import nrl_patches`` does to a process, and what it leaves alone."""

import shutil
import sys

import pytest
from standins import COUNT, ROOT, run

from nrl_patches.engine.registry import load


def test_imports_none_of_the_patched_distributions():
    done = run(
        """
        import sys
        import nrl_patches
        nrl_patches.status()
        heavy = {"torch", "transformers", "vllm", "nemo_automodel", "click", "pytest", "numpy"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_import_loads_a_few_modules_of_ours_and_of_the_interpreter():
    done = run(
        """
        import sys
        before = set(sys.modules)
        import nrl_patches
        new = set(sys.modules) - before
        others = sorted(name for name in new if not name.startswith(("nrl_patches", "_")))
        print(len(new) <= 25, others)
        """
    )
    assert done.stdout == "True ['fcntl']\n", done.stderr


def test_the_engine_needs_only_wrapt_and_packaging_beyond_the_standard_library():
    done = run(
        """
        import sys
        before = set(sys.modules)
        import nrl_patches
        nrl_patches.status()
        new = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
        print(sorted(name for name in new if not name.startswith("_")))
        """
    )
    assert done.stdout == "['nrl_patches', 'packaging', 'wrapt']\n", done.stderr


def test_writes_no_file_and_prints_nothing(tmp_path):
    copy = tmp_path / "site"
    shutil.copytree(ROOT / "nrl_patches", copy / "nrl_patches", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(
        """
        import builtins, io, os, sys
        def refuse(event, args):
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                raise AssertionError(f"opened {args[0]} for writing")
            if event in {"os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "shutil.copyfile"}:
                raise AssertionError(f"{event} {args}")
        sys.addaudithook(refuse)
        import nrl_patches
        nrl_patches.status()
        nrl_patches.undo()
        nrl_patches.apply()
        """,
        path=[copy],
        HOME="/nonexistent",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(copy.rglob("*.pyc"))


def test_stripped_docstrings_take_no_patch_away():
    script = """
        import sys
        import nrl_patches
        registry = nrl_patches._activation.registry
        assert not registry.broken
        assert sys.flags.optimize == 2 and all(sys.modules[patch.module].__doc__ is None for patch in registry)
        print(*[patch.doc for patch in registry], sep="")
    """
    done = run(script, PYTHONOPTIMIZE="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(patch.doc for patch in load()) + "\n"


def test_off_leaves_the_import_system_alone():
    done = run("import sys; n = len(sys.meta_path); import nrl_patches; print(len(sys.meta_path) - n)", NRL_PATCHES="0")
    assert done.stdout == "0\n", done.stderr


def test_a_bad_setting_breaks_the_import_under_strict_only():
    lenient = run("import nrl_patches", NRL_PATCHES_DISABLE="typo")
    assert lenient.returncode == 0
    assert "NRL_PATCHES_DISABLE: expected the id of a patch; found 'typo'" in lenient.stderr
    strict = run("import nrl_patches", NRL_PATCHES_DISABLE="typo", NRL_PATCHES_STRICT="1")
    assert strict.returncode == 1
    assert "nrl_patches.errors.SettingsError: NRL_PATCHES_DISABLE" in strict.stderr


def test_warnings_as_errors_do_not_break_the_host():
    done = run("import warnings; warnings.simplefilter('error'); import nrl_patches", NRL_PATCHES_DISABLE="typo")
    assert done.returncode == 0, done.stderr


def test_an_id_in_a_non_ascii_environment():
    done = run("import nrl_patches", NRL_PATCHES="jä", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "NRL_PATCHES: expected 1 or 0" in done.stderr


def test_reload_of_the_package():
    done = run(
        """
        import importlib, sys
        import nrl_patches
        activation, finders = nrl_patches._activation, len(sys.meta_path)
        importlib.reload(nrl_patches)
        assert nrl_patches._activation is activation
        assert len(sys.meta_path) == finders
        """
    )
    assert done.returncode == 0, done.stderr


SECOND_COPY = (ROOT / "tests" / "second_copy.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("imported_before", [True, False])
def test_a_second_copy_applies_nothing_twice(sandbox, tmp_path, imported_before):
    copy = tmp_path / "second"
    shutil.copytree(ROOT / "nrl_patches", copy / "nrl_patches", ignore=shutil.ignore_patterns("__pycache__"))
    sandbox.distribution(core=COUNT)
    sandbox.patch()
    given = {"COPY": str(copy), "PATCHES": sandbox.patches, "TARGET": sandbox.name}
    done = sandbox.run(SECOND_COPY, IMPORTED_BEFORE=str(imported_before), **given)
    assert done.returncode == 0, done.stderr


def test_thirty_two_threads_import_at_once(sandbox):
    sandbox.distribution(core=COUNT)
    sandbox.patch()
    done = sandbox.run(
        f"""
        import importlib, threading
        gate, results = threading.Barrier(32), []

        def worker(number):
            gate.wait(60)
            if number % 2:
                results.append(importlib.import_module("{sandbox.name}.core").count)
            else:
                import nrl_patches
                results.append(nrl_patches._activation)

        threads = [threading.Thread(target=worker, args=(n,)) for n in range(32)]
        [t.start() for t in threads]
        [t.join(60) for t in threads]
        assert len(results) == 32 and len(set(map(id, results[0::1]))) >= 2
        assert len({{id(r) for r in results if not callable(r)}}) == 1
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads a Linux error message")
def test_a_read_only_file_system_and_no_home():
    done = run("import nrl_patches; nrl_patches.status()", HOME="", TMPDIR="/nonexistent", XDG_CACHE_HOME="/proc")
    assert (done.returncode, done.stderr) == (0, "")
