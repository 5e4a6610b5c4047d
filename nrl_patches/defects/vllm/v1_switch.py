"""The switch `VLLM_USE_V1` chooses no engine since vLLM 0.11.0, and is not read at all since 0.12.0.

Problem: none in itself. 0.6.4 brought the V1 engine, off by default; 0.8.0 turned it on by default; 0.11.0 removed the
    V0 engine, and 0.12.0 the variable. Advice that says to set it is older than that.
Hit by: whoever still sets it, or NeMo RL's `NRL_VLLM_USE_V1`, which sets it. `VLLM_USE_V1=0` raises when the engine is
    built by 0.11.0 to 0.11.2 (read, not measured); later releases warn of an unknown variable, and run V1.
Advice: do not set it; who needs the V0 engine stays on 0.10.2.
Remove when: no supported release is older than vLLM 0.11.0.

The range is the releases in which the switch chooses between two engines.
"""

from __future__ import annotations

from importlib.util import find_spec

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected="vllm>=0.6.4,<0.11.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/25321",
        "https://github.com/vllm-project/vllm/pull/28204",
    ),
    advice="Do not set VLLM_USE_V1 (nor NRL_VLLM_USE_V1): from vLLM 0.11.0 on there is one engine.",
)


@defect.probe
def switch_chooses_between_two_engines() -> Observation:
    """Look whether the variable is read, and whether both engines are there."""
    from vllm import envs

    read = "VLLM_USE_V1" in envs.environment_variables
    v0 = find_spec("vllm.core") is not None and find_spec("vllm.core.scheduler") is not None
    v1 = find_spec("vllm.v1") is not None
    return Observation(read and v0 and v1, {"variable_is_read": read, "v0": v0, "v1": v1})
