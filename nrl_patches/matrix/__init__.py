"""The instrument behind every ``affected``: each patch's tripwire, measured on each upstream release.

Used by the command ``nrl-patches matrix`` (extra ``matrix``) and by this project's tests; never by
``import nrl_patches``. In the order of a run: ``index`` asks what exists, ``plan`` decides what to measure,
``environments`` installs a release beside the others, ``measurement`` runs its tripwires, ``evidence`` keeps what was
seen, ``judgement`` compares it with the declarations, ``picture`` and ``page`` show it.
"""
