"""What ``import nrl_patches`` costs, in one run: ratios between interleaved fresh interpreters, medians of many.

python tests/benchmarks/import_cost.py [ROUNDS]
"""

import os
import statistics
import subprocess
import sys
import time

BAR = 5.0
"""Milliseconds that the import may take above bare Python, bytecode kept as installers leave it."""

ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

CASES = {
    "python alone": "pass",
    "import wrapt, packaging.requirements": "import wrapt, packaging.requirements",
    "import nrl_patches": "import nrl_patches",
    "200 modules of the standard library": "{many}",
    "import nrl_patches, then the 200 modules": "import nrl_patches{many}",
}
MANY = """
import sys, importlib
for name in sorted(sys.stdlib_module_names)[:200]:
    try: importlib.import_module(name)
    except Exception: pass
"""


def seconds(code: str) -> float:
    """Return the wall time of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=ENVIRON)
    return time.perf_counter() - start


def main() -> None:
    """Print each case as milliseconds above bare Python and as a ratio to it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    codes = {name: code.replace("{many}", MANY) for name, code in CASES.items()}
    taken: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            taken[name].append(seconds(code))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    bare = medians["python alone"]
    for name, median in medians.items():
        print(f"{name:<42}{1000 * (median - bare):8.1f} ms above bare Python, ratio {median / bare:5.2f}")
    cost = 1000 * (medians["import nrl_patches"] - bare)
    print(f"the bar for `import nrl_patches` is {BAR} ms")
    sys.exit(int(cost > BAR))


if __name__ == "__main__":
    main()
