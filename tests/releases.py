"""Real upstream releases, each in a folder of its own that is put on ``PYTHONPATH`` in front of one shared environment.

The wheels under test are pure Python, so ``pip install --no-deps --target`` makes such a folder in seconds; pip's own
cache is the one download cache. What a release pins and the shared environment does not have in that version (mostly
tokenizers and huggingface-hub) becomes a folder too, so no pin of transformers is overridden. For nemo-automodel see
:data:`BESIDE`.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from standins import ROOT

FOLDER = Path(os.environ.get("NRL_PATCHES_RELEASES", ROOT / ".releases"))

COMPANIONS = ("tokenizers", "huggingface-hub")
"""What releases pin so narrowly that one version cannot serve all."""

BESIDE = {"nemo-automodel": ("torchao==0.18.0",)}
"""What is put beside a distribution because it does not import without it.

The pins of nemo-automodel are not all kept. torch is the one of the shared environment (0.3.0 and 0.4.0 say
``<=2.10.0``), because there is no other with a CPU build here. transformers is what the environment says, mostly the
one that the release pins (0.4.0: 5.5.0, 0.5.0: 5.8.1, 0.6.0: 5.12.1, 0.7.0: 5.18.0); where it is another, the two are
what an end of a range is about. What loading and checkpointing never import on the CPU is left out: datasets,
diffusers, flashoptim, ftfy, imageio-ffmpeg, megatron-fsdp, mistral-common, mlflow, opencv, quack-kernels, tiktoken,
torchdata, wandb.
"""

ENVIRONMENTS = (
    "transformers==4.55.4",  # the last whose Gemma 3n picks shared states from the cache's layers
    "transformers==4.56.0",  # the oldest with the attention that the Gemma 3n patch was written for
    "transformers==4.57.6",
    "transformers==5.0.0",
    "transformers==5.4.0",  # the first without the rule for Qwen-VL's vision tower
    "transformers==5.5.0",  # the first with Gemma 4
    "transformers==5.5.1",
    "transformers==5.5.2",  # the first in which Gemma 4 shares without a cache
    "transformers==5.5.4",
    "transformers==5.6.0",  # the first in which Gemma 3n shares without a cache, and with that rule
    "transformers==5.7.0",
    "transformers==5.8.1",
    "transformers==5.9.0",  # the first that shares under FSDP2, and that keeps Qwen-VL's rules by class
    "transformers==5.13.0",  # the first with rules for Qwen-VL's class without a head
    "transformers==5.23.0",
    "nemo-automodel==0.4.0 & transformers==5.5.0",  # its pin
    "nemo-automodel==0.5.0 & transformers==5.8.1",  # its pin; heeds the dtype that was asked for
    "nemo-automodel==0.6.0 & transformers==5.12.1",  # its pin
    "nemo-automodel==0.6.0 & transformers==5.23.0",
    "nemo-automodel==0.7.0 & transformers==5.18.0",  # its pin; asks for the rules by class
)
"""Those of the default test run: both ends of every declared range, and their neighbours.

An environment is one or more releases, joined by `` & ``.
"""


def folders(environment):
    """Return what to put on ``PYTHONPATH`` for an environment: the folders of its releases and their companions."""
    found = []
    for requirement in environment.split(" & "):
        folder = _folder(requirement)
        (info,) = folder.glob("*.dist-info")
        pinned = importlib.metadata.Distribution.at(info).requires or ()
        found += [folder, *_companions(tuple(r for r in pinned if Requirement(r).name in COMPANIONS))]
        found += [_folder(beside) for beside in BESIDE.get(Requirement(requirement).name, ())]
    return found


def run_on(environment, script, *args, timeout=600, **environ):
    """Run a script of this project in a fresh interpreter on upstream releases; return the finished process."""
    path = [*folders(environment), ROOT, ROOT / "tests"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NRL_")}
    env = inherited | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_VCS_VERSION": "1",  # nemo-automodel would add the commit of this checkout to its version
    }
    done = subprocess.run(
        [sys.executable, *map(str, (script, *args))],
        env=env | environ,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{script} {args} on {environment}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def results(done):
    """Return the JSON object that a script printed in its last line."""
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def _companions(requirements):
    found = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        if not requirement.specifier.contains(importlib.metadata.version(requirement.name)):
            found.append(_folder(f"{requirement.name}{requirement.specifier}"))
    return found


@functools.cache
def _folder(requirement):
    name = f"{Requirement(requirement).name}-{hashlib.sha256(requirement.encode()).hexdigest()[:12]}"
    folder = FOLDER / name
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=FOLDER))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", made]
        subprocess.run([*map(str, pip), requirement], check=True, stdin=subprocess.DEVNULL)
        try:
            made.rename(folder)
        except OSError:  # Another worker was faster.
            shutil.rmtree(made)
    return folder
