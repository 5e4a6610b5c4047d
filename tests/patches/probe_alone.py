"""Run one probe in a process of its own, for releases that spoil the process for every other probe.

    python probe_alone.py PATCH

Prints what it saw and the patch's status.
"""

import json
import sys

import nrl_patches
from nrl_patches.engine.registry import load

seen = load().patches[sys.argv[1]].observe()
status = nrl_patches.status()[sys.argv[1]]
print(json.dumps({"present": seen.present, "evidence": dict(seen.evidence), "state": status.state}))
