"""Import a copy of an upstream module in which the target of a patch has another name.

    python renamed_target.py MODULE OLD NEW PATCH

OLD and NEW are texts of the module's source. Prints the patch's status, and the number of warnings about it.
"""

import importlib
import importlib.abc
import importlib.util
import json
import logging
import sys
import tempfile
from pathlib import Path

MODULE, OLD, NEW, PATCH = sys.argv[1:]


class Renamed(importlib.abc.MetaPathFinder):
    """Finds the copy where the import system asks for the module."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, fullname, path=None, target=None):
        if fullname != MODULE:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                break
        source = Path(spec.origin).read_text()
        assert OLD in source
        copy = Path(self.folder) / Path(spec.origin).name
        copy.write_text(source.replace(OLD, NEW))
        return importlib.util.spec_from_file_location(fullname, copy)


class Count(logging.Handler):
    seen = 0

    def emit(self, record):
        self.seen += PATCH in record.getMessage()


with tempfile.TemporaryDirectory() as folder:
    sys.meta_path.insert(0, Renamed(folder))
    import nrl_patches

    logging.getLogger("nrl_patches").addHandler(counting := Count())
    importlib.import_module(MODULE)
    status = nrl_patches.status()[PATCH]
    print(json.dumps({"state": status.state, "reason": status.reason, "warnings": counting.seen}))
