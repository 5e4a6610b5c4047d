"""A copy of this package with stand-in patches in it, for tests of what whole processes do."""

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

from standins import ADD_ONE, PATCH, ROOT

OFF_BY_ONE = "def count():\n    return 1\n"
RIGHT = "def count():\n    return 2\n"

COUNTS = """
    from standin.core import count
    return Observation(count() != 2, {"count": count()})
"""


class Copy:
    """A copy of this package in a folder, beside a stand-in distribution."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(ROOT / "nrl_patches", folder / "nrl_patches")
        # What the wheel has at its top level; the environment's own would be that of its installation.
        shutil.copytree(folder / "nrl_patches" / "hosts", folder / "nrl_patches_hosts")
        self.patches = folder / "nrl_patches" / "patches"
        for distribution in (*self.patches.iterdir(), *(folder / "nrl_patches" / "defects").iterdir()):
            if distribution.is_dir() and distribution.name != "_shared":
                shutil.rmtree(distribution)
        self.write("nrl_patches/patches/standin/__init__.py", "")

    def write(self, path, text):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def upstream(self, version="1.0", core=OFF_BY_ONE):
        self.write("standin/__init__.py", "")
        self.write("standin/core.py", core)
        info = f"standin-{version}.dist-info"
        self.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: standin\nVersion: {version}\n")

    def patch(self, name="count", probe=COUNTS, **fields):
        values = {
            "affected": "standin<2",
            "target": "standin.core:count",
            "guard": "lambda original: None",
            "opt_out": "NRL_DISABLE_COUNT",
            "required": False,
            "fix": ADD_ONE,
            "more": "",
        } | fields
        values["fix"] = textwrap.indent(textwrap.dedent(values["fix"]), "    ")
        text = PATCH.format(**values).replace(
            "    return Observation(True)\n", textwrap.indent(textwrap.dedent(probe), "    ")
        )
        self.write(f"nrl_patches/patches/standin/{name}.py", text)

    def environ(self, **environ):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NRL_")}
        return inherited | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"} | environ

    def run(self, *args, **environ):
        """Run a module of the copy, by ``-m``."""
        return self.python("-m", *args, **environ)

    def pytest(self, *args, conftest="", **environ):
        """Run a test session of its own, with the plugin of the copy."""
        self.write("empty/conftest.py", conftest)
        known = any(point.value == "nrl_patches_hosts.pytest" for point in entry_points(group="pytest11"))
        plugin = () if known else ("-p", "nrl_patches_hosts.pytest")
        return self.run("pytest", *plugin, "-p", "no:cacheprovider", "-c", os.devnull, "empty", *args, **environ)

    def python(self, *args, python=sys.executable, **environ):
        """Run an interpreter that sees the copy."""
        return subprocess.run(
            [python, *map(str, args)],
            env=self.environ(**environ),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
