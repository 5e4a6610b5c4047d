"""Keeps nrl_patches out of multiprocessing in every process that starts with it, so that only plugins are left."""

import multiprocessing.spawn

# Looks as if it had been replaced already.
multiprocessing.spawn.get_preparation_data._nrl_patches_original = None
