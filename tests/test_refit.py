"""What a refit has left unwritten, on modules of torch; on the real engine see ``patches/vllm/generate.py``."""

import pytest

from nrl_patches import PatchError, refit

torch = pytest.importorskip("torch")

BUFFER = " (a buffer: a constant, or missing in the stream)"


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(8, 100), torch.nn.LayerNorm(100), torch.nn.Linear(100, 3))
    made.register_buffer("clamp", torch.tensor(float("nan")))
    made.register_buffer("table", torch.ones(3), persistent=False)
    assert refit.remember(made) == 7
    return made


def write(*weights):
    for weight in weights:
        weight.data.copy_(torch.randn(weight.shape))


def test_everything_is_unwritten_at_first_and_nothing_but_the_buffer_in_the_end(model):
    lines = refit.unwritten(model)
    assert len(lines) == 7
    assert lines[0] == f"clamp: not written{BUFFER}"
    assert lines[1:3] == ["0.weight: not written", "0.bias: not written"]
    write(*model.parameters())
    assert refit.unwritten(model) == [f"clamp: not written{BUFFER}"]


def test_what_is_written_in_part_is_told_by_its_rows(model):
    write(*model.parameters(), model.clamp)
    refit.remember(model)
    write(*list(model.parameters())[1:], model.clamp)
    write(model[0].weight[:60])
    assert refit.unwritten(model) == ["0.weight: 40 of 100 rows not written, the first of them row 60"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_one_changed_bit_counts_as_written_in_every_dtype(dtype):
    model = torch.nn.Module()
    model.register_buffer("weight", torch.zeros(1, 16).to(dtype))
    refit.remember(model)
    model.weight.view(torch.uint8)[0, -1] = 1
    assert refit.unwritten(model) == []


def test_the_same_values_in_another_order_are_written():
    row = torch.nn.Linear(8, 1, bias=False)
    refit.remember(row)
    row.weight.data.copy_(row.weight.data.flip(1))
    assert refit.unwritten(row) == []


def test_another_shape_and_empty_tensors_are_written(model):
    model[2].bias = torch.nn.Parameter(torch.zeros(5))
    model.register_buffer("none", torch.zeros(0, 4))
    assert not {line.partition(":")[0] for line in refit.unwritten(model)} & {"2.bias", "none"}
    refit.remember(model)
    assert not {line.partition(":")[0] for line in refit.unwritten(model)} & {"none"}


def test_a_worker_is_asked_for_its_model_and_by_name(model):
    class Runner:
        def get_model(self):
            return model

    class Worker(refit.WorkerExtension):
        model_runner = Runner()

    assert Worker().nrl_patches_remember_weights() == 7
    assert Worker().nrl_patches_unwritten_weights() == refit.unwritten(model)


def test_a_model_of_which_nothing_is_remembered_raises():
    with pytest.raises(PatchError, match="remember after the dummy load"):
        refit.unwritten(torch.nn.Linear(1, 1))
