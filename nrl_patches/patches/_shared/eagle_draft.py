"""A tiny EAGLE-3 draft in vLLM, for the probe of what becomes of its output head."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch

VOCABULARY, DRAFT_VOCABULARY, HIDDEN = 256, 128, 8


@contextmanager
def one_rank() -> Iterator[None]:
    """Give vLLM's layers the process groups that they ask for: one rank, without a network."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    with (
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))),
    ):
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()


def target() -> torch.nn.Module:
    """Return what a proposer looks at of the target model: its embedding and its output head."""
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.embed_tokens = _embedding()
    model.lm_head = ParallelLMHead(VOCABULARY, HIDDEN, prefix="lm_head")
    return model


def draft(rows: int = DRAFT_VOCABULARY) -> tuple[Any, torch.nn.Module]:
    """Return vLLM's configuration and the real draft of a Llama, without decoder layers.

    Args:
        rows: The size of the draft's vocabulary.
    """
    import torch
    from transformers import LlamaConfig
    from vllm.config import LoadConfig
    from vllm.model_executor.models import llama_eagle3

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, **_: Any) -> None:
            super().__init__()
            self.use_aux_hidden_state = self.norm_before_fc = False
            self.embed_tokens = _embedding()

    model = LlamaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=1)
    model.draft_vocab_size = rows
    speculative = SimpleNamespace(
        draft_model_config=SimpleNamespace(hf_config=model, hf_text_config=model, quantization=None),
        draft_load_config=None,
        method="eagle3",
        parallel_drafting=False,
        use_local_argmax_reduction=False,
    )
    config = SimpleNamespace(
        speculative_config=speculative,
        model_config=SimpleNamespace(
            get_num_layers=lambda _parallel: 1,
            get_total_num_hidden_layers=lambda: 1,
            get_vocab_size=lambda: VOCABULARY,
        ),
        compilation_config=SimpleNamespace(static_forward_context={}),
        parallel_config=None,
        load_config=LoadConfig(load_format="dummy"),
        quant_config=None,
    )
    with mock.patch.object(llama_eagle3, "LlamaModel", Decoder):
        return config, llama_eagle3.Eagle3LlamaForCausalLM(vllm_config=config)


def propose(config: Any, drafted: torch.nn.Module, model: torch.nn.Module) -> None:
    """Let the real proposer take a draft and decide what it shares with its target.

    Args:
        config: What :func:`draft` returned with the draft.
        drafted: The draft, with weights. It takes the place of the one that the proposer would build and load.
        model: The target.
    """
    from vllm.v1.spec_decode.eagle import EagleProposer

    proposer = object.__new__(EagleProposer)
    vars(proposer).update(
        vllm_config=config,
        speculative_config=config.speculative_config,
        draft_model_config=config.speculative_config.draft_model_config,
        method="eagle3",
        device="cpu",
        supports_mm_inputs=False,
        parallel_drafting=False,
        parallel_drafting_hidden_state_tensor=None,
        eagle3_use_aux_hidden_state=False,
        pass_hidden_states_to_model=False,
        use_local_argmax_reduction=False,
        _create_draft_vllm_config=lambda: config,
    )
    home = _home()
    with (
        mock.patch.object(home, "get_model", return_value=drafted),
        mock.patch.object(home, "get_layers_from_vllm_config", return_value={}),
    ):
        proposer.load_model(model)


def _home() -> ModuleType:
    """Return the module whose ``get_model`` the proposer calls; it moved in 0.20.0."""
    newer = "vllm.v1.spec_decode.llm_base_proposer"
    return importlib.import_module(newer if importlib.util.find_spec(newer) else "vllm.v1.spec_decode.eagle")


def _embedding() -> torch.nn.Module:
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    return VocabParallelEmbedding(VOCABULARY, HIDDEN, prefix="embed_tokens")
