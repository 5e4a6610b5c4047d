"""The instrument behind every ``affected``: each patch's tripwire, measured on each upstream release.

Used by the command ``nrl-patches matrix`` (extra ``matrix``) and by this project's tests; never by ``import
nrl_patches``. Imports tripwires, processes and engine, and nothing of cli. In the order of a run: ``session`` is the
folder of the run, ``index`` asks what exists, ``plan`` decides what to measure, ``names`` knows what environments are
called, ``environments`` installs a release beside the others (by ``recipes``), ``runner`` runs its tripwires
(``runner_child`` the unpatched sides of one release, in one process), ``evidence`` keeps what was seen and
``fingerprint`` of which code, ``compare`` holds it against the declarations (``judgement``), ``report`` shows it and
``update`` writes it into a checkout. What the package was released with is in ``data``; ``freshness`` tells how old
that is.
"""
