"""The instrument behind every ``affected``: each patch's tripwire, measured on each upstream release.

Used by the command ``nrl-patches matrix`` (extra ``matrix``) and by this project's tests; never by ``import
nrl_patches``. In the order of a run: ``command`` reads what the user asks for, ``workshop`` is the folder of the run,
``index`` asks what exists, ``plan`` decides what to measure, ``environments`` installs a release beside the others,
``measurement`` runs its tripwires (``release`` the unpatched sides of one release, in one process), ``evidence``
keeps what was seen and ``fingerprint`` of which code, ``judgement`` compares it with the declarations, ``panels``
arranges it, ``picture`` (by way of ``canvas``) and ``page`` show it.
"""
