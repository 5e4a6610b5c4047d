"""What the processes of a job pay, in one run: interleaved fresh interpreters, medians of many, wall and CPU time.

    python tests/benchmarks/process_cost.py [ROUNDS]

Needs the extra ``run``. A process that never imports a target under ``nrl-patches run`` against a bare one, and against
what autowrapt alone would cost it; importing the package with and without its record; a fork with and without it; a
spawned child with and without the patches. CPU time, that of a case's children included, shows what wall time hides on
a busy machine. Where the bytecode of the startup file cannot be kept, it is compiled at every start.
"""

import os
import py_compile
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nrl_patches
from nrl_patches.processes.autowrapt import GROUP, STARTUP, VARIABLE

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
COMPILED, PLAIN = "COMPILED", "PLAIN"
"""Stand for folders with the startup file, made below."""
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "python": ("pass", {}),
    "python, again": ("pass", {}),
    "python under nrl-patches run": ("pass", RUN | {"PYTHONPATH": COMPILED}),
    "python under nrl-patches run, no bytecode": ("pass", RUN | {"PYTHONPATH": PLAIN, "PYTHONDONTWRITEBYTECODE": "1"}),
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
    ("python under nrl-patches run, no bytecode", "python"),
    ("python with autowrapt's variable alone", "python"),
    ("import nrl_patches", "import nrl_patches, no record"),
    ("100 forks", "100 forks, no record"),
    ("a spawned child", "a spawned child without the patches"),
]


def run(code: str, environ: dict[str, str]) -> tuple[str, float, float]:
    """Run code in a fresh interpreter that finds this package; return its output, and wall and CPU time in ms."""
    path = str(Path(nrl_patches.__file__).parents[1])
    path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), path]))
    environ = {**os.environ, **environ, "PYTHONPATH": path}
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{code}: {process.returncode}")
    return output, 1000 * wall, 1000 * (used.ru_utime + used.ru_stime)


def startup_folders(folder: Path) -> dict[str, str]:
    """Put the startup file into a folder with its bytecode, and into one without."""
    made = {name: folder / name for name in (COMPILED, PLAIN)}
    for name, place in made.items():
        place.mkdir()
        file = shutil.copy(STARTUP / "sitecustomize.py", place)
        if name == COMPILED:
            py_compile.compile(str(file), doraise=True)
    return {name: str(place) for name, place in made.items()}


def main() -> None:
    """Print each case in milliseconds, and the ratios and differences that matter."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        folders = startup_folders(Path(folder))
        for _ in range(rounds):
            # An interpreter that starts after a long case is slower than one that starts after a short one.
            for name in random.sample(list(CASES), len(CASES)):
                code, environ = CASES[name]
                placed = {variable: folders.get(value, value) for variable, value in environ.items()}
                taken[name].append(run(code, placed)[1:])
    print(f"{'':<60}{'wall':>9}{'CPU':>9}")
    for name, times in taken.items():
        wall, cpu = map(statistics.median, zip(*times, strict=True))
        print(f"{name:<60}{wall:9.1f}{cpu:9.1f} ms")
    for one, other in PAIRS:
        pairs = list(zip(taken[one], taken[other], strict=True))
        ratio = statistics.median(a[0] / b[0] for a, b in pairs)
        cpu = statistics.median(a[1] / b[1] for a, b in pairs)
        more = statistics.median(a[1] - b[1] for a, b in pairs)
        print(f"{one} / {other}: wall {ratio:.3f}, CPU {cpu:.3f} ({more:+.2f} ms)")
    print(f"one change of the record: {float(run(CHANGES, {})[0]):.1f} us")


if __name__ == "__main__":
    main()
