"""The upstream releases that the default test run measures, in the environments that the matrix makes for them."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import forks
from standins import ROOT

from nrl_patches.matrix.environments import Part, variables
from nrl_patches.matrix.environments import build as build_environment
from nrl_patches.matrix.environments import build_part as build_folder
from nrl_patches.matrix.names import parse_environment
from nrl_patches.matrix.plan import axis

FOLDER = Path(os.environ.get("NRL_PATCHES_RELEASES", ROOT / ".releases"))

ENVIRONMENTS = (
    "huggingface-hub==0.31.2",
    "huggingface-hub==0.31.4",  # the first with strict dataclasses
    "huggingface-hub==2.4.0",
    "torch==2.13.0",  # the only one, that of this interpreter
    "transformers==4.44.2",
    "transformers==4.45.0",  # the first whose PaliGemma takes text for a prompt, and whose Jamba hands mixers a mask
    "transformers==4.46.1",  # the first whose Jamba takes any keyword argument
    "transformers==4.47.1",
    "transformers==4.48.0",  # the first with Bamba
    "transformers==4.48.1",  # the first whose Trainer adds up no more losses than it is told to
    "transformers==4.49.0",
    "transformers==4.50.0",  # the first with Gemma 3
    "transformers==4.51.3",  # the last whose Mamba-2 mixes its groups up
    "transformers==4.52.1",
    "transformers==4.53.0",  # the first with Gemma 3n
    "transformers==4.53.1",  # the first that tells packed sequences apart
    "transformers==4.54.0",  # the first with LFM2
    "transformers==4.55.0",  # the first with gpt-oss
    "transformers==4.55.2",  # the last whose hybrid models forget their state
    "transformers==4.55.3",
    "transformers==4.55.4",  # the last whose Gemma 3n picks shared states from the cache's layers
    "transformers==4.56.0",
    "transformers==4.57.1",  # the first with Qwen3-Next
    "transformers==4.57.6",
    "transformers==5.0.0",
    "transformers==5.1.0",  # the last in which hybrid models make masks of their own
    "transformers==5.2.0",  # the first whose Trainer divides gradients twice
    "transformers==5.3.0",  # the first with Nemotron-H and OLMo Hybrid, and that obeys the class of a tokenizer
    "peft==0.21.2 & transformers==5.4.0",  # the first without the rule for Qwen-VL's vision tower
    "peft==0.18.0 & transformers==5.5.0",  # the first with Gemma 4
    "transformers==5.5.1",
    "transformers==5.5.2",  # the first in which Gemma 4 shares without a cache
    "transformers==5.5.3",
    "transformers==5.5.4",  # the first whose Trainer doesn't
    "transformers==5.6.0",  # the first in which Gemma 3n shares without a cache, and with that rule
    "peft==0.21.2 & transformers==5.8.1",
    "peft==0.19.0 & transformers==5.9.0",  # the first that shares under FSDP2, and that keeps Qwen-VL's rules by class
    "transformers==5.10.1",  # the first that looks for code among the blobs of the hub's cache
    "transformers==5.10.2",
    "transformers==5.10.4",  # the first that runs code of tokenizers of any model; the next does not
    "transformers==5.11.0",
    "transformers==5.12.0",
    "transformers==5.12.1",
    "transformers==5.13.0",  # the first with rules for Qwen-VL's class without a head
    "transformers==5.14.1",
    "transformers==5.15.0",  # the first that masks a single row of a state-space model
    "transformers==5.15.1",
    "transformers==5.16.0",  # the first that saves Nemotron-H as the hub has it
    "transformers==5.16.1",  # the last whose Falcon-H1 drops what tells of packed sequences
    "transformers==5.17.0",  # the first whose Gemma 3 divides by tokens
    "transformers==5.19.0",
    "transformers==5.20.0",  # the first whose talker of Qwen3-Omni keeps its configurations
    "transformers==5.21.1",
    "transformers==5.22.0",  # the first that looks whether a tokenizer works on bytes
    "transformers==5.22.2",
    "transformers==5.23.0",  # the first whose shared states accelerate can move
    "peft==0.21.2 & transformers==5.24.0",
    "nemo-automodel==0.3.0 & transformers==5.9.0",
    "nemo-automodel==0.4.0 & transformers==5.5.0",  # its pin
    "nemo-automodel==0.5.0 & transformers==5.8.1",  # its pin; heeds the dtype that was asked for
    "nemo-automodel==0.6.0 & transformers==5.12.1",  # its pin
    "nemo-automodel==0.6.0 & transformers==5.24.0",
    "nemo-automodel==0.7.0 & transformers==5.18.0",  # its pin; asks for the rules by class
    "vllm==0.6.3",
    "vllm==0.9.0.1",
    "vllm==0.9.1",  # the first whose dummy loader has `load_weights`
    "vllm==0.10.0",  # the first with Voxtral
    "vllm==0.10.1",  # the first whose GLM-4.5 knows types, and with Step3
    "vllm==0.10.2",  # the first with Seed-OSS
    "vllm==0.11.0",  # the first whose RADIO skips LayerScale
    "vllm==0.11.1",  # the first that shares a target's head with a draft
    "vllm==0.15.1",  # the first with Step 3.5
    "vllm==0.16.0",  # the first that reloads layerwise
    "vllm==0.19.0",  # the first that waits for a coordinator
    "vllm==0.20.0",  # the first with the newer Ray executor
    "vllm==0.20.2",
    "vllm==0.21.0",  # the first whose GLM-4.5 keeps blanks, and with Poolside
    "vllm==0.23.0",
    "vllm==0.24.0",  # the first that counts no more than a parameter has
    "vllm==0.25.0",  # the first that imports what openai 2.24 has not
    "vllm==0.25.1",
    "vllm==0.26.0",  # the first whose Qwen3-Coder and MiniMax M2 keep blanks
    "vllm==0.27.1",  # the last whose executor takes the port that it promised
    "vllm==0.28.0",
    "vllm==0.29.0",  # the last that allows openai 2.24
    "vllm==0.30.0",
    "vllm==0.31.0",
    "vllm==0.32.0",  # the first whose Nemotron VL has the projector's layer norm
    "vllm==0.33.0",
)
"""Both ends of every declared range and the first release after it; ``test_declarations.py`` holds them to that."""


WHOLE = os.environ.get("NRL_PATCHES_CONTRACT") == "whole"
"""Whether the contract runs every probe on every release, and not only where a range begins or ends."""


ALONE = {
    "transformers==4.44.2": {
        "transformers.hybrid_masks_without_position_ids",
        "transformers.mamba_packed_state",
    },
    "transformers==4.45.0": {
        "transformers.hybrid_masks_without_position_ids",
        "transformers.mamba_packed_state",
        "transformers.paligemma_text_is_a_prompt",
    },
    "transformers==4.46.1": {"transformers.hybrid_models_drop_seq_idx"},
}
"""Releases that are older than what the probes of all patches but some are written for."""


def is_probed(patch, environment):
    """Whether the contract runs the probe of a patch, without the patch and with it, in an environment.

    It does in the releases with which a range begins and ends, and in those next to them. What the probes say of all
    others, in both states, is in the matrix's evidence, which ``test_declarations.py`` holds to the code.
    """
    along = axis(patch)
    here = parse_environment(environment).get(along)
    if here is None or patch.id not in ALONE.get(environment, {patch.id}):
        return False
    if WHOLE or at_an_end(patch, environment):
        return True
    versions = _versions(along)
    ends = {end for affected in _affected(patch) for end in (min(affected.values()), max(affected.values()))}
    next_to_it = {v for i, v in enumerate(versions) if ends & {*versions[max(i - 1, 0) : i + 2]}}
    return here in next_to_it and not any(environment in affected for affected in _affected(patch))


def at_an_end(patch, environment):
    """Whether a range of a patch begins or ends, as far as these releases go, with that of an environment."""
    return any(
        environment in affected and affected[environment] in {min(affected.values()), max(affected.values())}
        for affected in _affected(patch)
    )


@functools.cache
def _versions(distribution):
    """The releases of a distribution in these environments, oldest first."""
    parsed = map(parse_environment, ENVIRONMENTS)
    return sorted({versions[distribution] for versions in parsed if distribution in versions})


@functools.cache
def _affected(patch):
    """The environments that each alternative of a patch's range covers, with the version along which it is declared."""
    parsed = {environment: parse_environment(environment) for environment in ENVIRONMENTS}
    covered = (
        {
            environment: versions[axis(patch)]
            for environment, versions in parsed.items()
            if all(part.distribution in versions for part in conjunction)
            and all(part.releases.contains(versions[part.distribution]) for part in conjunction)
        }
        for conjunction in patch.affected.alternatives
    )
    return [affected for affected in covered if affected]


PEFT = Part(("peft==0.21.2",))
"""One version imports on all of them, and finds what it needs in the base."""

# Without it half of a process's time goes into compiling transformers; who wants none beside sources gets it elsewhere.
BYTECODE = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(FOLDER.absolute() / "bytecode")}
if not os.environ.get("PYTHONDONTWRITEBYTECODE"):
    BYTECODE = {}


# What torch 2.13.0 reads from its cache of compiled graphs may raise, see `torch.cached_unsafe_views`.
UNCACHED = {"TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
# Of what a compiled graph consists, on the other hand, is the same in many releases, and takes longer than the rest.
UNCACHED |= {"TORCHINDUCTOR_CACHE_DIR": str(FOLDER.absolute() / "inductor")}

AS_OF = {"UV_EXCLUDE_NEWER": "2026-11-26"}
"""What the releases require is resolved as of this day, so that a red run today means the same tomorrow."""


def build(environment, folder):
    """Install what is missing of an environment and return its folders."""
    with mock.patch.dict(os.environ, AS_OF):
        return build_environment(environment, folder)


def build_part(part, folder):
    """Install a part of one, if it is missing, and return its folder."""
    with mock.patch.dict(os.environ, AS_OF):
        return build_folder(part, folder)


def run_on(environment, script, *args, **options):
    """Run a script of this project on upstream releases, with the options of :func:`run_in`; return the process."""
    return run_in([*build(environment, FOLDER), ROOT / "tests"], script, *args, **options)


def run_with_peft_on(environment, script, *args, **options):
    """The same with PEFT beside them."""
    path = [*build(environment, FOLDER), build_part(PEFT, FOLDER), ROOT / "tests"]
    return run_in(path, script, *args, **options)


def run_in(path, script, *args, timeout=600, fresh=False, **environ):
    """Run a script in a process of its own and return that, finished.

    Args:
        path: The folders that come first on its path.
        script: The script.
        args: Its arguments.
        timeout: In seconds.
        fresh: Whether it needs an interpreter of its own, because how it starts is what is tested. Any other is a fork
            of a process that has imported torch, and nothing that is tested.
        environ: Environment variables.
    """
    command, variables_ = [*map(str, (script, *args))], variables(path, os.environ) | BYTECODE | UNCACHED | environ
    if fresh:
        done = subprocess.run(
            [sys.executable, *command], env=variables_, capture_output=True, text=True, timeout=timeout, check=False
        )
    else:
        done = forks.run(command, variables_, timeout)
    if done.returncode:
        place = [folder.name for folder in path]
        raise AssertionError(f"{script} {args} on {place}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def results(done):
    """Return the JSON object that a script printed in its last line."""
    return json.loads(done.stdout.splitlines()[-1])
