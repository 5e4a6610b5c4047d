"""Run transformers' own tests of models, without the patches and with them, and compare; no part of a test run.

    python model_suites.py CHECKOUT RELEASE COMMIT MODEL... [--processes 2] [--media] [--hub]

CHECKOUT is a clone of transformers, whose archives on the index have no tests. COMMIT is the one on its main branch
from which the release was cut: the last before ``__version__`` names the next one, or for 4.57, which was cut sooner,
``163601c619^``. MODEL is a folder of ``tests/models``, or, with a slash, a path below ``tests``, with or without a
class: ``trainer/test_trainer.py``.

The tests run on the release as it is installed. Nothing is downloaded: tests that need the hub, an accelerator, or
minutes are skipped or fail, in both states. ``--media`` adds torchvision and librosa, without which some files cannot
be imported. ``--hub`` adds stand-ins for the model and the texts that Trainer's tests of gradient accumulation load.

Prints the counts of either state, each test whose outcome differs, and each file that was not imported; exits with 1
if there is such a file, or a test that passes without the patches and not with them.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from releases import BYTECODE, FOLDER, build, build_part

from nrl_patches.matrix.environments import Part, variables

NEEDED = Part((
    "parameterized==0.9.0",
    *("datasets==3.6.0", "pyarrow", "pandas", "xxhash", "multiprocess", "dill", "python-dateutil", "pytz", "tzdata"),
    *("aiohttp", "aiosignal", "attrs", "frozenlist", "multidict", "propcache", "yarl", "aiohappyeyeballs"),
    *("scipy", "sentencepiece", "six"),
))  # fmt: skip
"""What the tests import; without timm and torchvision, whose tests are skipped. Newer datasets want a newer hub."""

MEDIA = (Part(("torchvision==0.28.0",)), Part(("librosa==0.11.0", "lazy-loader==0.4", "soxr==1.0.0")))
"""With what they need to be imported, and no more; for torchvision that is in ``vision_operators.py`` too."""

PARTS = ("tests", "utils", "conftest.py", "pyproject.toml", "setup.py")
"""Of the checkout."""


def unpack(checkout, commit, release, folder, parts):
    """Unpack the tests, beside the release where they look for their own sources; return the folders of the release."""
    git = [shutil.which("git"), "-C", checkout, "archive", commit, *PARTS]
    archive = subprocess.run(git, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tests:
        tests.extractall(folder, filter="data")
    installed = build(f"transformers=={release}", FOLDER)
    (folder / "src").mkdir()
    (folder / "src" / "transformers").symlink_to(Path(installed[0]) / "transformers")
    return [*installed, *(build_part(part, FOLDER) for part in parts)]


def set_up(path, folder):
    """Return the variables of the processes that run on the release."""
    environ = variables([*map(str, path), str(folder), str(Path(__file__).parent)], os.environ) | BYTECODE
    return environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "CI": ""}


def run(path, folder, models, *, is_patched, processes, plugins=()):
    """Return the outcome of each test by its name: its kind, and what failed."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    environ = set_up(path, folder) | {"NRL_PATCHES": str(int(is_patched))}
    names = [model if "/" in model else f"models/{model}/test_modeling_{model}.py" for model in models]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", processes]
    command += [word for plugin in ("nrl_patches", *plugins) for word in ("-p", plugin)]
    command += [f"--junitxml={report}", *(folder / "tests" / name for name in names)]
    with (folder / f"{'patched' if is_patched else 'unpatched'}.log").open("w", encoding="utf-8") as log:
        subprocess.run(list(map(str, command)), env=environ, cwd=folder, stdout=log, stderr=log, check=False)
    assert report.exists(), Path(log.name).read_text(encoding="utf-8")[-3000:]
    return dict(map(outcome, ET.parse(report).iter("testcase")))


def outcome(case):
    # A test with subtests may have several.
    ends = [part for kind in ("error", "failure", "skipped") for part in case.findall(kind)]
    message = " ".join((ends[0].get("message") or "").split())[:300] if ends else ""
    return f"{case.get('classname')}::{case.get('name')}", (ends[0].tag if ends else "passed", message)


def compare(unpatched, patched):
    """Return the counts of both states, the tests whose outcome differs, and the files that were not imported."""
    absent = ("absent", "")
    names = sorted(unpatched.keys() | patched.keys())
    pairs = {name: (unpatched.get(name, absent), patched.get(name, absent)) for name in names}
    return {
        "unpatched": Counter(kind for kind, _ in unpatched.values()),
        "patched": Counter(kind for kind, _ in patched.values()),
        "other": {name: pair for name, pair in pairs.items() if pair[0][0] != pair[1][0]},
        "not_collected": [name for name, pair in pairs.items() if ("error", "collection failure") in pair],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("checkout", "release", "commit"):
        parser.add_argument(name)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--media", action="store_true")
    parser.add_argument("--hub", action="store_true")
    options = parser.parse_args()
    parts, plugins = ((NEEDED, *MEDIA), ("vision_operators",)) if options.media else ((NEEDED,), ())
    folder = Path(tempfile.mkdtemp(prefix="suites-"))
    try:
        path = unpack(options.checkout, options.commit, options.release, folder, parts)
        if options.hub:
            command = [sys.executable, Path(__file__).with_name("hub.py"), folder]
            subprocess.run(command, env=set_up(path, folder) | {"NRL_PATCHES": "0"}, check=True)
        states = [
            run(path, folder, options.models, is_patched=is_patched, processes=options.processes, plugins=plugins)
            for is_patched in (False, True)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = compare(*states)
    print(json.dumps(found, indent=1))
    is_worse = any(before[0] == "passed" for before, _ in found["other"].values())
    sys.exit(int(is_worse or bool(found["not_collected"])))


if __name__ == "__main__":
    main()
