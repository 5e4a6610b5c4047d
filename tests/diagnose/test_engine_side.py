"""How the engine's side asks for what must be equal."""

from types import SimpleNamespace

import pytest

from nrl_patches.diagnose.sides.engine import Engine

PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


class Recorded(Engine):
    """An engine that notes which prompts it is given together."""

    def __init__(self):
        self.asked = []
        config = SimpleNamespace(vllm_config=SimpleNamespace(compilation_config=None))
        reset, call = (lambda: self.asked.append("reset")), lambda *_, **__: [{}]
        self.llm = SimpleNamespace(reset_prefix_cache=reset, collective_rpc=call, llm_engine=config)

    def _prompts(self, _task):
        return PROMPTS

    def _generate(self, prompts, _task, **_options):
        self.asked.append(len(prompts))
        return [SimpleNamespace(outputs=[SimpleNamespace(logprobs=[], token_ids=[])])] * len(prompts)

    def _logprobs(self, prompts, tokens):
        self.asked.append(len(prompts))
        return [[float(line[0])] for line in tokens]


@pytest.mark.parametrize(("tensors", "together"), [(True, [1, "reset", 1, "reset"] * 3), (False, [3, "reset"] * 2)])
def test_what_is_compared_with_its_tensors_goes_one_prompt_at_a_time(tensors, together):
    engine = Recorded()
    found = engine._observe({"tensors": tensors})
    assert engine.asked == together
    assert found["prompt"] == [[2.0], [5.0], [8.0]]
    assert len(found["steps"]) == len(PROMPTS)
