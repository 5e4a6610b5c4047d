"""One side of the contract of all patches, in one process, on the releases that are on the path.

    python contract_side.py off     the probes without any patch; then import, apply, undo in several permutations
    python contract_side.py on      the probes with the patches as ``import nrl_patches`` applies them

Prints one JSON object per patch id. ``off`` runs under ``NRL_PATCHES=0``. The probe of a patch whose distributions are
not all installed is not run.
"""

import functools
import importlib
import json
import sys
import traceback

import nrl_patches
from nrl_patches.activation import Activation
from nrl_patches.installed import find_installed
from nrl_patches.registry import load
from nrl_patches.targets import MARK


def observed(patch):
    if any(find_installed(distribution) is None for distribution in patch.affected.distributions):
        return {"present": None}
    try:
        seen = patch.observe()
    except Exception:  # noqa: BLE001 - an upstream release may raise anything
        return {"error": traceback.format_exc()}
    return {"present": seen.present, "evidence": dict(seen.evidence)}


def held(patch):
    """What the namespaces of the targets hold, by identity."""
    return [held_at(fix) for fix in patch.fixes]


def held_at(fix):
    *path, name = fix.qualname.split(".")
    try:
        owner = functools.reduce(getattr, path, importlib.import_module(fix.module))
    except Exception:  # noqa: BLE001 - two releases that do not go together may raise anything
        return None
    return vars(owner).get(name)


def same(one, other):
    return all(a is b for a, b in zip(one, other, strict=True))


def states(activation):
    return {patch_id: str(status.state) for patch_id, status in activation.status().items()}


def permutations(registry):
    """Yield the name and outcome of each permutation of activate, apply, undo; True is good."""
    before = {patch.id: held(patch) for patch in registry}  # also imports every target
    for patch in registry:
        for name, good in permutations_of(patch, registry, before[patch.id]):
            yield patch.id, name, good
    activation = Activation(registry, {})
    activation.start()
    activation.undo(*reversed(registry.patches))
    for patch in registry:
        yield patch.id, "undo all", same(held(patch), before[patch.id])


def permutations_of(patch, registry, before):
    # One patch at a time: several may have the same target.
    alone = {"NRL_PATCHES_ONLY": patch.id}
    opted_out = Activation(registry, alone | {patch.opt_out: "1"})
    opted_out.start()
    yield "opt-out", states(opted_out)[patch.id] == "disabled" and same(held(patch), before)
    activation = Activation(registry, alone)
    activation.start()
    state = states(activation)[patch.id]
    fixed = held(patch)
    yield "replaced exactly if applied", same(fixed, before) is not (state == "applied")
    activation.start()
    activation.apply(patch.id)
    yield "apply twice", same(held(patch), fixed)
    with activation.undo(patch.id):
        yield "undo", same(held(patch), before)
        with activation.undo(patch.id):
            pass
        yield "undo twice", same(held(patch), before)
    yield "apply again", states(activation)[patch.id] == state
    yield "replaced again", same(held(patch), before) is not (state == "applied")
    activation.undo(patch.id)
    yield "undo again", same(held(patch), before)


def main():
    registry = load()
    assert not registry.broken, registry.broken
    report = {patch.id: observed(patch) for patch in registry}
    for patch in registry:
        report[patch.id]["affected"] = patch.affected.decide(find_installed).answer.value
    if sys.argv[1] == "on":
        for patch_id, status in nrl_patches.status().items():
            functions = [getattr(raw, "__func__", raw) for raw in held(registry.patches[patch_id])]
            marks = [getattr(function, MARK, None) for function in functions]
            marked = any(mark is not None and patch_id in mark.ids for mark in marks)
            report[patch_id] |= {
                "state": status.state,
                "reason": status.reason,
                "notes": status.notes,
                "marked": marked,
            }
    else:
        for patch_id, name, good in permutations(registry):
            report[patch_id].setdefault("permutations", {})[name] = good
    print(json.dumps(report))


if __name__ == "__main__":
    main()
