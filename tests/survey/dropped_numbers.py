"""Ask each model of transformers whether its loss depends on the number of labels that the Trainer hands it.

    python dropped_numbers.py CHECKOUT RELEASE COMMIT [MODEL...]

CHECKOUT, RELEASE and COMMIT are those of ``model_suites.py``; MODEL is a folder of ``tests/models``, by default each.
The tiny models and their inputs are those of transformers' own tests. Of each class whose ``forward`` takes labels and
any keyword argument, one line: whether the loss is another one with a number (``reads``), the same (``drops``) or an
error; how many times as large it is of all rows twice, 1 for a mean and 2 for a sum; and what the patches make of it.
"""

import argparse
import contextlib
import copy
import importlib
import inspect
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

NUMBER = 7
ROUNDING = 1e-6


def loss_of(model, inputs, **more):
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        return float(model(**copy.deepcopy(inputs), **more).loss)


def doubled(inputs, rows):
    import torch

    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
            value = torch.cat([value, value])  # noqa: PLW2901 - each is yielded at once
        elif isinstance(value, list) and len(value) == rows:
            value = value + value  # noqa: PLW2901 - likewise
        yield name, value


def attempt(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the line says what was raised
        return f"{type(error).__name__}: {str(error).strip()[:60]!r}"


def described(test, kind):
    """Return the line of a class, None where its test gives it no labels."""
    import torch

    from nrl_patches.patches._shared import means_elsewhere

    config, inputs = test.model_tester.prepare_config_and_inputs_for_common()
    inputs = test._prepare_for_class(inputs, kind, return_labels=True)
    given = [inputs[name] for name in inputs if name.endswith("labels")]
    if not given:
        return None
    torch.manual_seed(0)
    model = kind(config).eval()
    plain, numbered = loss_of(model, inputs), attempt(loss_of, model, inputs, num_items_in_batch=torch.tensor(NUMBER))
    twice = attempt(loss_of, model, dict(doubled(inputs, len(given[0]))))
    same = isinstance(numbered, float) and not abs(plain - numbered) > ROUNDING * abs(plain)
    answer = numbered if isinstance(numbered, str) else "drops" if same else "reads"
    ratio = twice if isinstance(twice, str) else f"{twice / plain:.3f}"
    says = "denies it" if getattr(kind, "accepts_loss_kwargs", None) is False else ""
    rows = "mean of rows" if means_elsewhere.takes_mean_of_rows(model) else ""
    return answer, ratio, says or rows or ("weighed" if means_elsewhere.drops_number(model) else "")


def classes(test):
    """Yield the classes of a test whose ``forward`` takes labels, and any keyword argument."""
    for kind in getattr(test, "all_model_classes", None) or ():
        parameters = inspect.signature(kind.forward).parameters
        has_labels = any(name.endswith("labels") for name in parameters)
        if has_labels and inspect.Parameter.VAR_KEYWORD in {p.kind for p in parameters.values()}:
            yield kind


def ask(models):
    import vision_operators  # noqa: F401, I001 - before transformers, which looks for torchvision
    import transformers  # noqa: F401

    seen = set()
    for path in sorted(Path("tests/models").glob("*/test_modeling_*.py")):
        if models and path.parent.name not in models:
            continue
        module = attempt(importlib.import_module, ".".join(path.with_suffix("").parts))
        for case in () if isinstance(module, str) else list(vars(module).values()):
            if not (isinstance(case, type) and issubclass(case, unittest.TestCase)):
                continue
            with contextlib.suppress(Exception, unittest.SkipTest):
                test = case("run")
                test.setUp()
                for kind in set(classes(test)) - seen if hasattr(test, "model_tester") else ():
                    seen.add(kind)
                    line = attempt(described, test, kind)
                    if line is not None:
                        print(kind.__name__, *([line] if isinstance(line, str) else line), sep=" | ", flush=True)
        if isinstance(module, str):
            print(path.stem, module, sep=" | ", flush=True)


def main():
    from model_suites import MEDIA, NEEDED, set_up, unpack

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("checkout", "release", "commit"):
        parser.add_argument(name)
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="numbers-"))
    try:
        path = unpack(options.checkout, options.commit, options.release, folder, (NEEDED, *MEDIA))
        environ = set_up(path, folder) | {"NRL_PATCHES": "0"}
        command = [sys.executable, __file__, "--ask", *options.models]
        subprocess.run(command, env=environ, cwd=folder, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        ask(sys.argv[2:])
    else:
        main()
