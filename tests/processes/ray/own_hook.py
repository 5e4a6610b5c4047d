"""A setup hook of the user's own, as the helper's error asks for it."""

import os

import nrl_patches_startup


def hook():
    nrl_patches_startup.ray_worker()
    os.environ["MINE"] = "by my hook"
