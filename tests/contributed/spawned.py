"""Counts in a child that multiprocessing spawns."""

import multiprocessing

import nrl_patches  # noqa: F401 - activates the patches


def child():
    from standin.core import count

    print(count())


if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
