"""What the user asks for, what is known of the model, and the tasks of the processes that answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["DIAGNOSTICS", "MODES", "OFF", "ON", "Group", "Known", "Row", "Settings", "Task"]

OFF, ON = "off", "on"

DIAGNOSTICS = (
    "agreement",
    "max-model-len",
    "decode-vs-prefill",
    "embeddings",
    "compilation-modes",
    "prefix-cache",
    "refit",
    "packed-vs-padded",
)

_CASTS = {"TORCHINDUCTOR_EMULATE_PRECISION_CASTS": "1"}
MODES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]] = {
    "eager": ({"enforce_eager": True}, {}),
    "cuda-graphs": (
        {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
        {},
    ),
    "backend-eager": ({"enforce_eager": False, "compilation_config": {"backend": "eager"}}, {}),
    "inductor": ({"enforce_eager": False, "compilation_config": {"backend": "inductor"}}, {}),
    "inductor-casts": ({"enforce_eager": False, "compilation_config": {"backend": "inductor"}}, _CASTS),
}
"""The compilation modes: arguments of ``vllm.LLM``, and environment variables."""


@dataclass(frozen=True)
class Settings:  # One attribute per option.
    """The options of the command.

    Attributes:
        model: A folder or an id on the hub.
        trainer_model: The same model as the trainer loads it; as ``model`` if empty.
        only: The diagnostics.
        states: ``off``, ``on``, or the id of a patch that is on alone.
        each: Whether each patch that is applied is also tried alone.
        lengths: Tokens of a sequence, prompt included.
        data: ``real``, ``synthetic``.
        methods: ``greedy``, ``sampling``.
        batches: Sequences in a batch.
        repeats: How often each row of the table is run.
        new_tokens: Tokens that are sampled at most; half a sequence if 0.
        trainer_new_tokens: Tokens that the trainer samples at most; 0 leaves that half out.
        temperature: Of sampling.
        top_p: Of sampling.
        threshold: Of ``token_mult_prob_error``.
        tolerance: The largest gap between log-probabilities that should be equal; by precision if 0.
        zero: The norm below which a row of an embedding is near zero.
        identical: The standard deviation below which the values of a row are all alike.
        modes: Compilation modes.
        refit_batches: In how many batches the trainer's weights come.
        dtype: Of both sides.
        engine_python: The engine's interpreter; this one if empty.
        trainer_python: The trainer's.
        engine_args: More arguments of ``vllm.LLM``.
        trainer_args: More arguments of ``from_pretrained``.
        engine_paths: Folders in front of the engine's path, by the name of what they have.
        text: A file with real text.
        trust_remote_code: As transformers and vLLM have it.
        timeout: Seconds that one process may take.
    """

    model: str
    trainer_model: str = ""
    only: frozenset[str] = frozenset(DIAGNOSTICS)
    states: tuple[str, ...] = (OFF, ON)
    each: bool = False
    lengths: tuple[int, ...] = (100, 1000, 10_000)
    data: tuple[str, ...] = ("real", "synthetic")
    methods: tuple[str, ...] = ("greedy", "sampling")
    batches: tuple[int, ...] = (1, 8, 32)
    repeats: int = 3
    new_tokens: int = 0
    trainer_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    threshold: float = 1.05
    tolerance: float = 0.0
    zero: float = 1e-6
    identical: float = 1e-8
    modes: tuple[str, ...] = tuple(MODES)
    refit_batches: int = 8
    dtype: str = "auto"
    engine_python: str = ""
    trainer_python: str = ""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    trainer_args: Mapping[str, Any] = field(default_factory=dict)
    engine_paths: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})
    text: str = ""
    trust_remote_code: bool = False
    timeout: float = 4 * 3600.0

    @property
    def largest(self) -> float:
        """The largest gap between log-probabilities that should be equal."""
        return self.tolerance or (0.01 if self.dtype == "float32" else 1.0)

    @property
    def mean(self) -> float:
        """The ``token_mult_prob_error`` of log-probabilities that should be equal."""
        return min(self.threshold, 1.001) if self.dtype == "float32" else self.threshold


class Known(NamedTuple):
    """What is known before anything is planned.

    Attributes:
        streams: Which kinds of tokens there are.
        positions: How many positions the model has; None if its configuration doesn't say.
        backends: The trainer's.
        problem: Why there is no real text.
        has_tokenizer: Whether the engine may load one.
    """

    streams: tuple[str, ...]
    positions: int | None
    backends: tuple[str, ...] = ("transformers",)
    problem: str = ""
    has_tokenizer: bool = True


class Row(NamedTuple):
    """One row of the table of agreement, in one state.

    Attributes:
        length: Tokens of a sequence.
        data: ``real`` or ``synthetic``.
        method: ``greedy`` or ``sampling``.
        batch: Sequences.
        label: Which engine.
    """

    length: int
    data: str
    method: str
    batch: int
    label: str = ""


@dataclass(frozen=True)
class Group:
    """What one process serves.

    Attributes:
        side: ``engine`` or ``trainer``.
        state: ``off``, ``on``, or the id of a patch.
        arguments: Those of ``vllm.LLM`` or ``from_pretrained``, as JSON.
        environ: Environment variables, as JSON.
        label: The trainer's backend, or which of the engine's paths.
    """

    side: str
    state: str
    arguments: str = "{}"
    environ: str = "{}"
    label: str = ""

    @classmethod
    def of(
        cls,
        side: str,
        state: str,
        arguments: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        *,
        label: str = "",
    ) -> Group:
        """Return the group with some arguments.

        Args:
            side: As the attribute.
            state: As the attribute.
            arguments: As a mapping.
            environ: As a mapping.
            label: As the attribute.
        """
        return cls(side, state, _text(arguments), _text(environ or {}), label)


@dataclass(frozen=True)
class Task:
    """One result to get.

    Attributes:
        group: The process that gets it.
        kind: What is asked of it.
        parameters: The parameters, as JSON; those that end with ``.json`` name the result of another task.
        weight: How long it takes, in relation to others.
        shown: What it is, for people.
    """

    group: Group
    kind: str
    parameters: str
    weight: float = field(default=1.0, compare=False)
    shown: str = field(default="", compare=False)

    @classmethod
    def of(
        cls, group: Group, kind: str, parameters: Mapping[str, Any], *, weight: float = 1.0, shown: str = ""
    ) -> Task:
        """Return the task with some parameters.

        Args:
            group: As the attribute.
            kind: As the attribute.
            parameters: As a mapping.
            weight: As the attribute.
            shown: As the attribute.
        """
        return cls(group, kind, _text(parameters), weight, shown or kind)

    def file(self, fingerprint: str) -> str:
        """Return the name of the file with the result.

        Args:
            fingerprint: Of the model, the interpreters and the patches.
        """
        group = self.group
        everything = [group.side, group.state, group.arguments, group.environ, group.label, self.kind]
        digest = hashlib.sha256("\n".join([*everything, self.parameters, fingerprint]).encode()).hexdigest()
        return f"{self.kind}-{group.state}-{digest[:16]}.json"


def fingerprint_of(folder: Path, versions: Sequence[object]) -> str:
    """Return what changes when the model, an interpreter or a patch does.

    Args:
        folder: Of the model.
        versions: Of what is installed.
    """
    files = sorted(file for file in folder.glob("*") if file.is_file())
    model = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    patches = Path(__file__).parents[1] / "patches"
    sources = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(patches.rglob("*.py"))]
    return hashlib.sha256(_text([model, sources, list(versions)]).encode()).hexdigest()


def _text(content: object) -> str:
    return json.dumps(content, sort_keys=True)
