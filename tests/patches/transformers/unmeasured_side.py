"""What becomes of the patches in a process on whatever transformers is on the path.

Prints a JSON object: ``before`` and ``after`` the import of the targets, state and reason by id; ``present``, whether
the probe of the id that is the argument sees the defect; ``raised``, what importing a target raised; ``said``, the
warnings.
"""

import importlib
import json
import logging
import sys


class Kept(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def main(patch_id):
    kept = Kept()
    logging.getLogger("nrl_patches").addHandler(kept)
    import nrl_patches

    def states():
        return {s.id: [s.state, s.reason] for s in nrl_patches.status().values() if s.id.startswith("transformers.")}

    before, raised = states(), ""
    try:
        for module in ("conversion_mapping", "models.gemma4.modeling_gemma4", "models.gemma3n.modeling_gemma3n"):
            importlib.import_module(f"transformers.{module}")
    except nrl_patches.PatchError as error:
        raised = f"{type(error).__name__}: {error}"
    after = states()
    from nrl_patches.bootstrap import activation

    present = None if raised else activation().registry.patches[patch_id].observe().present
    print(json.dumps({"before": before, "after": after, "present": present, "raised": raised, "said": kept.lines}))


main(sys.argv[1])
