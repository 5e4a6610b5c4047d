"""Breaks the installation of nrl_patches, for everybody but its command."""

import sys

if "nrl_patches" not in sys.orig_argv:
    sys.modules["wrapt"] = None
