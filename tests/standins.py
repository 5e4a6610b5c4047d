"""Stand-ins for the engine's own tests: tiny distributions and tiny patch files, written where a test wants them."""

import importlib
import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from nrl_patches.engine import registry
from nrl_patches.engine.activation import Activation

ROOT = Path(__file__).parents[1]

PATCH = '''\
"""A stand-in is off by one.

Problem: it returns one too few.
Hit by: whoever calls it.
Fix: add one.
Remove when: it counts right.
"""

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected={affected!r},
    upstream=("https://example.org/issues/1",),
    opt_out={opt_out!r},
    required={required!r},
)


@patch.fix({target!r}, guard={guard})
def fix(original):
{fix}

{more}
@patch.probe
def probe():
    return Observation(True)
'''

COUNT = "def count():\n    return 1\n"

ADD_ONE = """
def fixed(*args, **kwargs):
    return original(*args, **kwargs) + 1
return fixed
"""


class Sandbox:
    """A folder on ``sys.path`` with stand-ins in it, whose modules are forgotten after the test."""

    _numbers = itertools.count()

    def __init__(self, folder):
        self.folder = folder
        self.activations = []
        self.name = f"standin{next(self._numbers)}"
        self.patches = f"{self.name}_patches"

    def write(self, path, text):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        importlib.invalidate_caches()
        return file

    def distribution(self, version="1.0", *, name=None, package=None, **modules):
        """Write a distribution whose package has the given modules (name -> source)."""
        name = name or self.name
        package = package or name.replace("-", "_")
        self.write(f"{package}/__init__.py", modules.pop("init", ""))
        for module, source in modules.items():
            self.write(f"{package}/{module}.py", source)
        if version is not None:
            info = f"{name.replace('-', '_')}-{version}.dist-info"
            self.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            self.write(f"{info}/top_level.txt", f"{package}\n")
        return package

    def patch(self, file="off_by_one", **fields):
        """Write a patch file; fields override the template's."""
        values = {
            "affected": f"{self.name}<2",
            "target": f"{self.name}.core:count",
            "guard": "lambda original: None",
            "opt_out": f"NRL_DISABLE_{file.upper()}",
            "required": False,
            "fix": ADD_ONE,
            "more": "",
        } | fields
        values["fix"] = textwrap.indent(textwrap.dedent(values["fix"]), "    ")
        values["more"] = textwrap.dedent(values["more"])
        self.write(f"{self.patches}/__init__.py", "")
        self.write(f"{self.patches}/{file}.py", PATCH.format(**values))
        return f"{self.patches}.{file}"

    def registry(self):
        """Load the written patch files."""
        return registry.load(importlib.import_module(self.patches))

    def activate(self, **environ):
        """Activate the written patch files under the given environment variables."""
        activation = Activation(self.registry(), environ)
        self.activations.append(activation)
        activation.start()
        return activation

    def core(self):
        return importlib.import_module(f"{self.name}.core")

    def run(self, code, **environ):
        """Run code in a fresh interpreter that sees the sandbox and this project."""
        return run(code, path=[self.folder, ROOT], **environ)

    def clean(self):
        for activation in self.activations:
            for patch in activation.registry:
                activation._unhook(patch)
        for name in [n for n in sys.modules if n.split(".")[0].startswith(self.name)]:
            del sys.modules[name]


def run(code, *, path=(ROOT,), python=sys.executable, **environ):
    """Run code in a fresh interpreter; return the finished process. Nothing of the caller's NRL_ settings gets in."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NRL_")}
    env = inherited | {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"} | environ
    return subprocess.run(
        [python, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=300, check=False
    )


def only(activation):
    (status,) = activation.status().values()
    return status
