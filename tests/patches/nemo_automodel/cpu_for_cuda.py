"""The one thing that these tests replace: the device that nemo-automodel hard-codes.

``nemo_automodel._transformers.auto_model`` asks for ``torch.device("cuda", torch.cuda.current_device())``. Here that
module, and no other, sees a ``torch`` that answers both with the CPU and passes on everything else.
"""

import types

import torch

CPU = torch.device("cpu")


class _PassThrough(types.ModuleType):
    def __init__(self, behind, **changed):
        super().__init__(behind.__name__)
        self._behind = behind
        self.__dict__.update(changed)

    def __getattr__(self, name):
        return getattr(self._behind, name)


class _DeviceType(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, torch.device)


class _Device(metaclass=_DeviceType):
    def __new__(cls, kind, *index):
        return CPU if kind == "cuda" else torch.device(kind, *index)


def install():
    from nemo_automodel._transformers import auto_model

    cuda = _PassThrough(torch.cuda, current_device=lambda: CPU)
    auto_model.torch = _PassThrough(torch, cuda=cuda, device=_Device)
    return auto_model
