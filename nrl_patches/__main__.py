"""``python -m nrl_patches`` is the command ``nrl-patches``."""

from nrl_patches.cli.main import main

main(prog_name="nrl-patches")
