"""Be the driver that a worker starts, as vLLM's engine core is where its executor is Ray: a job of its own.

    python second_driver.py < RUNTIME_ENV

Reads what to pass to ``ray.init``, pickled, and prints what a worker of the new job says of nrl_patches.
"""

import json
import logging
import pickle
import sys

import ray


@ray.remote(max_retries=0)
def path():
    activated = sys.modules.get("nrl_patches")
    return activated and activated.activated_by


def main():
    runtime_env = pickle.load(sys.stdin.buffer)
    # vLLM's own call: initialize_ray_cluster in v1/executor/ray_utils.py.
    ray.init(address=None, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    print(json.dumps(ray.get(path.remote(), timeout=120)))


if __name__ == "__main__":
    main()
