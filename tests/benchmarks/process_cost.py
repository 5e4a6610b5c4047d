"""What the processes of a job pay, in one run: ratios between interleaved fresh interpreters, medians of many.

    python tests/benchmarks/process_cost.py [ROUNDS]

Needs the extra ``run``. A process that never imports a target under ``nrl-patches run`` against a bare one, and against
what autowrapt alone would cost it; importing the package with and without its record; a fork with and without it; a
spawned child with and without the patches.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nrl_patches
from nrl_patches.cli_run import GROUP, STARTUP, VARIABLE

FORKS = """
import os{imports}
for _ in range(100):
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
"""
CHANGES = """
import nrl_patches, time
change = nrl_patches._activation.on_change
start = time.perf_counter()
for _ in range(1000):
    change()
print((time.perf_counter() - start) * 1000)
"""
SPAWN = """
import multiprocessing{imports}
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
"""
WITHOUT = "import os; del os.memfd_create; "
RUN = {VARIABLE: GROUP}
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "python": ("pass", {}),
    "python, again": ("pass", {}),
    "python under nrl-patches run": ("pass", RUN | {"PYTHONPATH": str(STARTUP)}),
    "python with autowrapt's variable alone": ("pass", RUN),
    "import nrl_patches, no record": (f"{WITHOUT}import nrl_patches", {}),
    "import nrl_patches": ("import nrl_patches", {}),
    "100 forks, no record": (WITHOUT + FORKS.replace("{imports}", ", nrl_patches"), {}),
    "100 forks": (FORKS.replace("{imports}", ", nrl_patches"), {}),
    "a spawned child without the patches": (SPAWN.replace("{imports}", ", nrl_patches"), {"NRL_PATCHES": "0"}),
    "a spawned child": (SPAWN.replace("{imports}", ", nrl_patches"), {}),
}
PAIRS = [
    ("python, again", "python"),
    ("python under nrl-patches run", "python"),
    ("python with autowrapt's variable alone", "python"),
    ("import nrl_patches", "import nrl_patches, no record"),
    ("100 forks", "100 forks, no record"),
    ("a spawned child", "a spawned child without the patches"),
]


def run(code: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds this package."""
    path = str(Path(nrl_patches.__file__).parents[1])
    path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), path]))
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environ | {"PYTHONPATH": path}, check=True, stdout=-1, text=True
    )


def main() -> None:
    """Print each case in milliseconds, and the ratios that matter."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, (code, environ) in CASES.items():
            start = time.perf_counter()
            run(code, environ)
            taken[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name:<42}{median:9.1f} ms")
    for one, other in PAIRS:
        ratio = statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))
        print(f"{one} / {other}: {ratio:.3f}")
    print(f"one change of the record: {float(run(CHANGES, {}).stdout):.1f} us")


if __name__ == "__main__":
    main()
