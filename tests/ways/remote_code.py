"""Every way to name the folder of a model with code of its own; a way returns 0.0 if that is run, from equal copies."""

import tempfile
from functools import partial
from pathlib import Path

from nrl_patches.patches._shared import remote_code
from nrl_patches.patches._shared.quiet import quiet


def loaded(folder):
    """Load the configuration, and check the class by what comes of three modules of its own."""
    from transformers import AutoConfig

    return float(AutoConfig.from_pretrained(folder, trust_remote_code=True).width != 8)


def copied(folder):
    """Where the code is copied to; the folder is named by a hash of the sources."""
    from transformers import dynamic_module_utils

    return dynamic_module_utils.get_cached_module_file(folder, f"{remote_code.MODULE}.py")


def plain(folder):
    folder.mkdir()
    for name, text in remote_code.FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def linked(folder, target):
    folder.symlink_to(target)
    return folder


def of_snapshot(folder):
    return loaded(remote_code.snapshot(folder / "hub"))


def of_plain_folder(folder):
    return loaded(plain(folder / "tiny"))


def by_linked_folder(folder):
    return loaded(linked(folder / "tiny", remote_code.snapshot(folder / "hub")))


def by_text(folder):
    return loaded(str(remote_code.snapshot(folder / "hub")))


def in_equal_copies(folder):
    """Links, or none: the sources are the same, and so is their hash."""
    snapshot = remote_code.snapshot(folder / "hub")
    tiny = plain(folder / snapshot.name)
    return float(Path(copied(snapshot)).parent.name != Path(copied(tiny)).parent.name)


def in_another_copy(folder):
    """What an imported module imports is part of the hash."""
    tiny = plain(folder / "tiny")
    before = copied(tiny)
    (tiny / "numbers_of.py").write_text("TWO = 2.0\n", encoding="utf-8")
    return float(copied(tiny) == before)


def ways():
    """Yield the name of each way and the function that goes it."""
    for way in (of_snapshot, of_plain_folder, by_linked_folder, by_text, in_equal_copies, in_another_copy):
        yield way.__name__.replace("_", " "), partial(apart, way)


def apart(way):
    with quiet(), tempfile.TemporaryDirectory() as folder, remote_code.modules_in(Path(folder, "modules")):
        return way(Path(folder))
