"""Ask the process in which vLLM inspects a model's class, and print what it says. No engine is started."""

import json

from processes.vllm.observed import PATCH, observe


def inspect():
    seen = observe()
    import nrl_patches

    return seen | {"activated_by": nrl_patches.activated_by, "state": nrl_patches.status()[PATCH].state}


def main():
    from vllm.model_executor.models import registry

    print(json.dumps(registry._run_in_subprocess(inspect)))


if __name__ == "__main__":
    main()
