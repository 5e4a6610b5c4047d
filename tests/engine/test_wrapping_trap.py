"""Why a replaced forward is a plain function. Should a test here fail, wrapt or torch has closed the trap: say so."""

import functools
import inspect

import pytest
import wrapt

torch = pytest.importorskip("torch")


class Inner(torch.nn.Module):
    def forward(self, x):
        return x * 2


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


def double(wrapped, _instance, args, kwargs):
    return wrapped(*args, **kwargs) * 2


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.setattr(Inner, "forward", Inner.forward)
    torch._dynamo.reset()


def compiled(module):
    return torch.compile(module, backend="eager", fullgraph=True)(torch.ones(1)).item()


@pytest.mark.usefixtures("restored")
def test_dynamo_skips_a_wrapt_wrapper_of_a_submodule_and_traces_the_original():
    wrapt.wrap_function_wrapper(Inner, "forward", double)
    assert Net()(torch.ones(1)).item() == 4
    assert compiled(Net()) == 2


@pytest.mark.usefixtures("restored")
def test_dynamo_traces_a_plain_function():
    original = Inner.forward
    Inner.forward = lambda self, x: original(self, x) * 2
    assert Net()(torch.ones(1)).item() == compiled(Net()) == 4


@pytest.mark.usefixtures("restored")
def test_accelerate_strips_what_has_a_wrapped_attribute():
    accelerate_utils = pytest.importorskip("accelerate.utils")
    original = Inner.forward

    @functools.wraps(original)
    def fixed(self, x):
        return original(self, x) * 2

    net = Inner()
    net.forward = fixed.__get__(net)
    net._original_forward = original.__get__(net)
    assert net(torch.ones(1)).item() == 4
    accelerate_utils.extract_model_from_parallel(net, keep_fp32_wrapper=False)
    assert net(torch.ones(1)).item() == 2


NETS = """
import torch

class Inner(torch.nn.Module):
    def forward(self, x):
        return x * 2

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)
"""


def test_what_this_package_installs_passes_all_of_it(sandbox):
    sandbox.distribution(core=NETS)
    sandbox.patch(
        target=f"{sandbox.name}.core:Inner.forward",
        fix="return lambda self, x: original(self, x) * 2",
        guard="lambda forward: mismatch(forward, parameters='self x')",
    )
    activation = sandbox.activate()
    net, forward = sandbox.core().Net(), sandbox.core().Inner.forward
    assert net(torch.ones(1)).item() == compiled(net) == 4
    assert not hasattr(forward, "__wrapped__")
    assert list(inspect.signature(forward).parameters) == ["self", "x"]
    with activation.undo():
        torch._dynamo.reset()
        assert net(torch.ones(1)).item() == compiled(net) == 2
    (status,) = activation.status().values()
    assert "torch._dynamo.reset() drops what it traced of Inner.forward" in status.notes[0]
    torch._dynamo.reset()
    assert net(torch.ones(1)).item() == compiled(net) == 4
