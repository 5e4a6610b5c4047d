"""The command ``nrl-patches``, for :func:`releases.run_on`, which starts scripts."""

from nrl_patches.cli.main import main

main(prog_name="nrl-patches")
