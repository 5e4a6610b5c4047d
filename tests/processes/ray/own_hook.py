"""A setup hook of the user's own."""

import os


def hook():
    os.environ["MINE"] = "by my hook"
