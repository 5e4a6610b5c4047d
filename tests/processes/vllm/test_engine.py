"""The real vLLM on the CPU: the front end, EngineCore and the workers, however they are started."""

import pytest
from patches.vllm.environment import overlay_with
from processes.vllm.observed import PATCH
from processes.vllm.running import ACME, BROKEN, HERE, UNCOVERED, check_contributed, check_patched, check_record, start
from releases import results

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

PATCHED = {
    "spawned, two workers, by the plugin alone": (["two"], {"overlay": UNCOVERED}, ("plugin", "plugin", "plugin")),
    "spawned, imported by the main script": (
        ["import"],
        {"VLLM_PLUGINS": "another"},
        ("import", "multiprocessing", "multiprocessing"),
    ),
    "forked": (["fork"], {"overlay": ACME}, ("plugin", "plugin", "plugin")),
    "in one process, by its name": (
        [],
        {"VLLM_PLUGINS": "another,nrl-patches", **IN_PROCESS},
        ("plugin", None, "plugin"),
    ),
}
"""Options of engine.py, the environment, and what has to have brought the patches into each part of the engine."""

REFUSED = {
    "broken installation": ({"overlay": BROKEN, **IN_PROCESS}, "ModuleNotFoundError: import of wrapt halted"),
    "unknown id": ({"NRL_PATCHES_DISABLE": "vllm.dummy_load", **IN_PROCESS}, "SettingsError: NRL_PATCHES_DISABLE: exp"),
}

# One engine at a time: each has up to four processes.
pytestmark = pytest.mark.xdist_group("engines")


def engine(*options, **environ):
    return start(HERE / "engine.py", *options, **environ)


@pytest.mark.parametrize("case", PATCHED)
def test_every_process_is_patched_and_says_by_what(case):
    options, environ, (front_end, core, worker) = PATCHED[case]
    seen = results(engine(*options, **environ))
    assert len(seen["worker"]) == 1 + ("two" in options)
    for part, path in {"front end": front_end, "core": core, "worker": worker}.items():
        assert (part in seen) == (path is not None)
        for process in seen.get(part, ()):
            check_patched(process, path)
            if environ.get("overlay") == ACME:
                check_contributed(process)
    if core:
        assert {process["parent"] for process in seen["core"]} == {seen["front end"][0]["pid"]}
        assert {process["parent"] for process in seen["worker"]} == {seen["core"][0]["pid"]}


def test_model_inspection_is_patched_by_the_plugin():
    # That process is no child of multiprocessing, so this is the only way into it.
    seen = results(start(HERE / "inspection.py"))
    assert (seen["imported"], seen["activated_by"], seen["state"]) == (True, "plugin", "applied")
    assert (seen["present"], seen["present when undone"]) == (False, True)


@pytest.mark.parametrize("variable", ["NRL_PATCHES=0", "VLLM_PLUGINS=another"])
def test_no_process_is_patched_where_the_user_says_so(variable):
    seen = results(engine(**dict([variable.split("=")])))
    for part in ("front end", "core", "worker"):
        (process,) = seen[part]
        assert process["present"] is True
        assert process["imported"] is False
        assert process["problem"].startswith("no record: ")
        assert process["unpatched"] is (variable != "NRL_PATCHES=0")


def test_vllm_serve_is_patched_before_the_first_request():
    seen = results(start(HERE / "serve.py"))
    assert len(seen["text"].split()) == 4
    assert seen["ended with"] == 0
    (front_end,), (core,), (worker,) = seen["front end"], seen["core"], seen["worker"]
    check_record(front_end, "plugin", "pending")  # No model is loaded there.
    check_patched(core, "multiprocessing")
    check_patched(worker, "multiprocessing")


def test_an_engine_with_a_broken_installation_starts_and_says_so():
    done = engine("generate", overlay=BROKEN, **IN_PROCESS)
    seen = results(done)
    assert len(seen["tokens"]) == 4
    ((record,),) = (process["records"] for process in seen["front end"])
    assert "ModuleNotFoundError: import of wrapt halted" in record["failure"]
    assert done.stderr.count("nrl_patches (plugin): expected to be imported; found ModuleNotFoundError") == 1


@pytest.mark.parametrize("case", REFUSED)
def test_under_strict_such_an_engine_does_not_start(case):
    environ, said = REFUSED[case]
    assert said in results(engine("refused", NRL_PATCHES_STRICT="1", **environ))["refused"]


def test_under_strict_an_engine_does_not_start_if_a_patch_drifts_in_a_worker(tmp_path):
    file = "model_executor/model_loader/dummy_loader.py"
    overlay = overlay_with(tmp_path / "overlay", "0.30.0", file, "def load_weights(", "def fill_weights(")
    # Bytecode of a folder that is gone tomorrow is worth nothing.
    done = engine("refused", overlay=overlay, NRL_PATCHES_STRICT="1", PYTHONDONTWRITEBYTECODE="1")
    assert results(done)["refused"].startswith("RuntimeError: Engine core initialization failed.")
    assert f"DriftedError: {PATCH}: expected " in done.stdout  # vLLM logs there what ended the worker.
