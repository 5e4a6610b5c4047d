"""The dtype patch where the version of Automodel is no release.

    python dtype_between_releases.py VERSION

Prints its status after Automodel's loader was imported under that version.
"""

import json
import sys

import nemo_automodel

nemo_automodel.__version__ = sys.argv[1]

from nemo_automodel._transformers import model_init  # noqa: E402 - the version comes first

import nrl_patches  # noqa: E402

status = nrl_patches.status()["nemo_automodel.dtype_restore"]
print(json.dumps({"state": status.state, "reason": status.reason, "module": model_init.__name__}))
