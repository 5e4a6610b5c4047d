"""A copy of this package with stand-in patches in it, beside a stand-in distribution, for the real command."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

from standins import ADD_ONE, PATCH, ROOT

OFF_BY_ONE = "def count():\n    return 1\n"
RIGHT = "def count():\n    return 2\n"

COUNTS = """
    from standin.core import count
    return Observation(count() != 2, {"count": count()})
"""


class Copy:
    """A copy of this package with stand-in patches in it, beside a stand-in distribution."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(ROOT / "nrl_patches", folder / "nrl_patches", ignore=shutil.ignore_patterns("__pycache__"))
        self.patches = folder / "nrl_patches" / "patches"
        shutil.rmtree(self.patches / "transformers")
        for other in ("nemo_automodel", "vllm"):
            shutil.rmtree(self.patches / other, ignore_errors=True)
        self.write("nrl_patches/patches/standin/__init__.py", "")

    def write(self, path, text):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

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

    def run(self, *args, **environ):
        env = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"} | environ
        command = [sys.executable, "-m", *args]
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )

    def tripwires(self, *args, **environ):
        return self.run("nrl_patches", "tripwires", *args, **environ)

    def outcome(self, *args, **environ):
        """Return the only tripwire and the exit code."""
        done = self.tripwires("--format", "json", *args, **environ)
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        (tripwire,) = report["tripwires"]
        assert report["passed"] == (done.returncode == 0)
        return tripwire, done.returncode
