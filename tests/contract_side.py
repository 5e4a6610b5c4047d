"""The contract of all patches on the releases that are on the path, in forks of one process that has imported torch.

    python contract_side.py ENVIRONMENT

Prints a JSON object with three parts, each by patch id:

- ``off``: the probes without any patch; then import, apply, undo in several permutations.
- ``on``: the probes with the patches as ``import nrl_patches`` applies them; then the structural ways, where the range
  of a patch begins or ends; then what is left of them when all are undone.
- ``ways``: what became of every way to use a target, by subject, patched; and unpatched where that is to be known.

A patch is probed where its range begins or ends, and next to that; elsewhere only its status is told. No probe is run
whose distributions are not all installed.

    python contract_side.py ENVIRONMENT SUBJECT NAME...

Goes the named ways of a subject only, in the process as it is.
"""

import contextlib
import ctypes
import functools
import gc
import getpass
import importlib
import inspect
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from ways.subjects import SUBJECTS

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: a caller that has waited long enough kills this process, and a fork would stay behind."""

COMMON = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers",
    "torch.nn.attention.flex_attention",
    "transformers.generation.configuration_utils",
    "vllm.logger",
    "aiohttp",
    "cv2",
    "fastapi",
    "fsspec",
    "mistral_common.protocol.instruct.request",
    "openai",
    "opentelemetry.sdk.trace",
    "pydantic_extra_types.language_code",
    "xgrammar",
)
"""What both sides import before any target: done once. The last ones are what vLLM takes longest to import."""

ALONG = {
    "huggingface_hub.dataclasses",
    "torch._tensor",
    "torch.distributed.fsdp._fully_shard._fsdp_param",
    "torch.multiprocessing.reductions",
    "torch.storage",
    "transformers.dynamic_module_utils",
    "transformers.models.auto.tokenization_auto",
}
"""Targets that come along with it: patched where they are, as in a program that imports this package last."""


TOGETHER = {
    "transformers==4.57.6",
    "peft==0.21.2 & transformers==5.24.0",
    "nemo-automodel==0.7.0 & transformers==5.18.0",
    "vllm==0.33.0",
}
"""Where all patches together are applied to targets that have been imported; elsewhere one by one."""


def import_all(modules):
    gc.disable()  # It would find nothing, again and again, in ever more objects.
    for module in modules:
        # Two releases that do not go together may raise anything.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.enable()


def import_common():
    import_all(COMMON)
    assert "nrl_patches" not in sys.modules
    # What is older than the targets holds none of them, and need not be searched for who does at each apply and undo.
    gc.freeze()
    # The engine would count what is frozen, object by object, to tell of it in a note.
    gc.get_freeze_count = lambda: 0


def forked(function, *args):
    """Return what a function returns in a fork of this process, which stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer"
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            tempfile.tempdir = folder  # What a way leaves behind goes with it, but for the headers of Inductor.
            Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).mkdir(parents=True, exist_ok=True)
            Path(folder, f"torchinductor_{getpass.getuser()}").symlink_to(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                file.write_text(json.dumps(function(*args)), encoding="utf-8")
                code = 0
            except BaseException:  # noqa: BLE001 - the fork must end here
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"{function.__name__}{args} ended with {os.waitstatus_to_exitcode(status)}"
        return json.loads(file.read_text(encoding="utf-8"))


def registry_with_targets():
    """Import our package and all targets, in this order."""
    from nrl_patches.engine.registry import load

    registry = load()
    assert not registry.broken, registry.broken
    targets = {fix.module for patch in registry for fix in patch.fixes}
    assert os.environ.get("NRL_PATCHES") == "0" or targets & sys.modules.keys() <= ALONG
    import_all(targets)
    return registry


def observed(patch, environment):
    from releases import is_probed

    from nrl_patches.engine.distributions import find_installed

    report = {"affected": patch.affected.decide(find_installed).answer.value}
    if not is_probed(patch, environment):
        return report
    if any(find_installed(distribution) is None for distribution in patch.affected.distributions):
        return report | {"present": None}
    try:
        seen = patch.observe()
    except Exception:  # noqa: BLE001 - an upstream release may raise anything
        return report | {"error": traceback.format_exc()}
    return report | {"present": seen.present, "evidence": dict(seen.evidence)}


def off(environment, subjects):
    """The side without patches.

    Args:
        environment: Its name.
        subjects: The names of the ways to go, by subject.
    """
    os.environ["NRL_PATCHES"] = "0"
    registry = registry_with_targets()
    options = {subject.name: subject.environments.get(environment, {}) for subject in SUBJECTS}
    gone = {name: forked(went, name, options[name], names) for name, names in subjects.items()}
    report = {patch.id: observed(patch, environment) for patch in registry}
    for patch_id, name, good in permutations(registry, environment):
        report[patch_id].setdefault("permutations", {})[name] = good
    return {"patches": report, "ways": gone}


def on(environment):
    """The side with patches."""
    from releases import at_an_end
    from ways.structure import structure

    import nrl_patches
    from nrl_patches.engine.module_bodies import is_rewritten
    from nrl_patches.engine.targets import MARK

    registry = registry_with_targets()
    gone = {
        subject.name: forked(went, subject.name, subject.environments[environment])
        for subject in SUBJECTS
        if environment in subject.environments
    }
    report = {patch.id: observed(patch, environment) for patch in registry}
    for patch_id, status in nrl_patches.status().items():
        patch = registry.patches[patch_id]
        marks = [getattr(getattr(raw, "__func__", raw), MARK, None) for raw in held(patch)]
        marked = any(mark is not None and patch_id in mark.ids for mark in marks)
        marked |= any(is_rewritten(patch_id, fix) for fix in patch.fixes if not fix.qualname)
        applied = status.state == "applied"
        report[patch_id] |= {
            "state": status.state,
            "reason": status.reason,
            "notes": status.notes,
            "marked": marked,
            "structure": dict(structure(patch)) if applied and at_an_end(patch, environment) else {},
        }
    originals = {fix: original(raw) for patch in registry for fix in patch.fixes if (raw := held_at(fix)) is not None}
    nrl_patches.undo()
    for patch in registry:
        report[patch.id]["restored"] = all(reached(fix) is originals[fix] for fix in patch.fixes if fix in originals)
    return {"patches": report, "ways": gone}


def went(name, options, names=None):
    from ways.going import go

    gc.freeze()  # While dynamo traces, the collector would go through all of torch again and again.
    # Last, so that one which the environment has of its own comes first; and only here, because the patches of PEFT
    # are measured in environments that say so.
    sys.path.append(os.environ["WAYS_PEFT"])

    (subject,) = (subject for subject in SUBJECTS if subject.name == name)
    return go(subject, options, names)


def held(patch):
    """What the namespaces of the targets hold."""
    return [held_at(fix) for fix in patch.fixes if fix.qualname]


def identities(patch):
    """The same by number: for each that a test holds, the engine would search the heap at every apply and undo."""
    return [id(raw) for raw in held(patch)]


def held_at(fix):
    *path, name = fix.qualname.split(".")
    try:
        owner = functools.reduce(getattr, path, importlib.import_module(fix.module))
    except Exception:  # noqa: BLE001 - two releases that do not go together may raise anything
        return None
    return vars(owner).get(name)


def original(raw):
    """What was there before any patch, of what the namespace of a target holds."""
    from nrl_patches.engine.targets import mark_of

    function = getattr(raw, "__func__", raw)
    mark = mark_of(function)
    return function if mark is None else mark.pristine


def reached(fix):
    """What a target leads to now, held by its owner or inherited; of a class or static method the function in it."""
    *path, name = fix.qualname.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(fix.module))
    raw = inspect.getattr_static(owner, name)
    return getattr(raw, "__func__", raw)


def states(activation):
    return {patch_id: str(status.state) for patch_id, status in activation.status().items()}


def permutations(registry, environment):
    """Yield the name and outcome of each permutation of activate, apply, undo; True is good."""
    from releases import is_probed

    from nrl_patches.engine.activation import Activation

    before = {patch.id: identities(patch) for patch in registry}
    for patch in (patch for patch in registry if is_probed(patch, environment)):
        for name, good in permutations_of(patch, registry):
            yield patch.id, name, good
    if environment not in TOGETHER:
        return
    activation = Activation(registry, {})
    activation.start()
    activation.undo(*reversed(registry.patches))
    for patch in registry:
        yield patch.id, "undo all", identities(patch) == before[patch.id]


def permutations_of(patch, registry):
    from nrl_patches.engine.activation import Activation

    before = identities(patch)

    # One patch at a time: several may have the same target.
    alone = {"NRL_PATCHES_ONLY": patch.id}
    opted_out = Activation(registry, alone | {patch.opt_out: "1"})
    opted_out.start()
    yield "opt-out", states(opted_out)[patch.id] == "disabled" and identities(patch) == before
    activation = Activation(registry, alone)
    activation.start()
    state = states(activation)[patch.id]
    fixed = identities(patch)
    yield "replaced exactly if applied", (fixed == before) is not (state == "applied")
    activation.start()
    activation.apply(patch.id)
    yield "apply twice", identities(patch) == fixed
    with activation.undo(patch.id):
        yield "undo", identities(patch) == before
        with activation.undo(patch.id):  # Each undo is held until its own block is left.
            pass
        yield "undo twice", identities(patch) == before
    yield "apply again", states(activation)[patch.id] == state
    yield "replaced again", (identities(patch) == before) is not (state == "applied")
    activation.undo(patch.id)
    yield "undo again", identities(patch) == before


def main(environment):
    import_common()
    patched = forked(on, environment)
    raised = {
        subject: [name for name, outcome in gone.items() if "error" in outcome]
        for subject, gone in patched["ways"].items()
    }
    unpatched = forked(off, environment, {subject: names for subject, names in raised.items() if names})
    report = {"on": patched["patches"], "off": unpatched["patches"]}
    print(json.dumps(report | {"ways": {"on": patched["ways"], "off": unpatched["ways"]}}))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(went(sys.argv[2], {}, sys.argv[3:])))
    else:
        main(sys.argv[1])
