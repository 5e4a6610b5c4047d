"""How long `nrl-patches audit` takes for a lock file with 500 packages.

    python tests/benchmarks/audit_lock.py

Prints seconds, medians of alternating runs; the bar is one second for the whole command.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 7
PACKAGES = 500
SEED = Path(__file__).parents[1] / "audit" / "nemo_rl.lock.toml"


def lock():
    """The lock of the tests, with further packages that depend on each other."""
    text = SEED.read_text(encoding="utf-8")
    first = 'dependencies = [\n    { name = "packaging" },'
    assert first in text
    text = text.replace(first, f'{first}\n    {{ name = "more0" }},', 1)
    more = []
    for n in range(PACKAGES):
        needed = ", ".join(f'{{ name = "more{m}" }}' for m in range(n + 1, min(n + 6, PACKAGES)))
        more += ["[[package]]", f'name = "more{n}"', f'version = "1.{n}"', f"dependencies = [{needed}]"]
        more += ['source = { registry = "https://example.org/simple" }', ""]
    return "\n".join([text, *more])


def seconds(*command):
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=False, capture_output=True)
    return time.perf_counter() - start


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "uv.lock"
        file.write_text(lock(), encoding="utf-8")
        runs = [
            (seconds("-m", "nrl_patches", "audit", str(file)), seconds("-m", "nrl_patches", "--help"))
            for _ in range(RUNS)
        ]
    audit, nothing = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"audit of {PACKAGES} packages: {audit:.2f} s; the command's help: {nothing:.2f} s")


main()
