"""The dtype patch where Automodel was installed from a checkout, and its version is no release.

    python dtype_between_releases.py VERSION

Prints its status after Automodel's loader was imported under that version.
"""

import importlib.metadata
import json
import sys

import nemo_automodel

nemo_automodel.__version__ = sys.argv[1]
read_text = importlib.metadata.PathDistribution.read_text
importlib.metadata.PathDistribution.read_text = lambda self, name: (
    '{"dir_info": {"editable": true}}' if name == "direct_url.json" else read_text(self, name)
)

from nemo_automodel._transformers import model_init  # noqa: E402 - the version comes first

import nrl_patches  # noqa: E402

status = nrl_patches.status()["nemo_automodel.dtype_restore"]
print(json.dumps({"state": status.state, "reason": status.reason, "module": model_init.__name__}))
