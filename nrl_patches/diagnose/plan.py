"""Which tasks answer a diagnostic in one state of the patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from nrl_patches.diagnose.settings import MODES, Group, Known, Row, Settings, Task

__all__ = ["Plan"]

_HEADROOM = 16
_LEFT = (1, 7, 16, 0)
"""Tokens that are free behind the prompts of `max-model-len`; 0 asks for one more than fits."""

_PACKED = (5, 3, 2, 1)
"""The lengths of the packed sequences, in relation to each other."""

_BEYOND = 12
"""How many more tokens than fit `max-model-len` asks for."""

_LONG = 512
"""Tokens that `decode-vs-prefill` generates."""


@dataclass(frozen=True)
class Plan:
    """The tasks in one state.

    Args:
        settings: What the user asks for.
        known: What is known of the model.
        state: Of the patches.
        fingerprint: For the names of the files.
    """

    settings: Settings
    known: Known
    state: str
    fingerprint: str

    @cached_property
    def span(self) -> int:
        """The tokens of the longest sequence."""
        positions = self.known.positions
        fitting = [length for length in self.settings.lengths if positions is None or length < positions]
        return max(fitting) if fitting else (positions or 2) - 1

    @property
    def once(self) -> bool:
        """Whether what no patch changes, or what is compared with itself, belongs to this state."""
        return self.state == self.settings.states[-1]

    @property
    def data(self) -> str:
        """The tokens of all but `agreement`."""
        return "real" if "real" in self.known.streams else "synthetic"

    def wants(self, diagnostic: str) -> bool:
        """Return whether a diagnostic is asked for.

        Args:
            diagnostic: Its name.
        """
        return diagnostic in self.settings.only

    def engine(self, label: str, mode: str = "", **more: Any) -> Group:
        """Return an engine.

        Args:
            label: Which of the engine's paths.
            mode: A compilation mode; by default what the user asks for.
            more: Arguments that the diagnostic needs.
        """
        settings = self.settings
        room = self.span + _HEADROOM
        arguments: dict[str, Any] = {
            "dtype": settings.dtype,
            "enable_prefix_caching": True,
            "max_model_len": min(room, self.known.positions or room),
            "max_num_seqs": max(settings.batches),
            "seed": 0,
        }
        arguments |= {"trust_remote_code": True} if settings.trust_remote_code else {}
        arguments |= {} if self.known.has_tokenizer else {"skip_tokenizer_init": True}
        compilation, environ = MODES[mode] if mode else ({}, {})
        return Group.of(
            "engine", self.state, arguments | {**settings.engine_args, **compilation, **more}, environ, label=label
        )

    def trainer(self, backend: str = "transformers") -> Group:
        """Return a trainer.

        Args:
            backend: Whose ``from_pretrained`` it uses.
        """
        settings = self.settings
        arguments: dict[str, Any] = {"dtype": settings.dtype}
        arguments |= {"trust_remote_code": True} if settings.trust_remote_code else {}
        return Group.of("trainer", self.state, arguments | dict(settings.trainer_args), label=backend)

    def name(self, task: Task) -> str:
        """Return the name of the file with the result of a task.

        Args:
            task: The task.
        """
        return task.file(self.fingerprint)

    def rows(self) -> list[Row]:
        """Return the rows of the table that can be run."""
        wanted = self.settings
        lengths = [length for length in wanted.lengths if length <= self.span]
        data = [kind for kind in wanted.data if kind in self.known.streams]
        every = product(lengths, data, wanted.methods, wanted.batches, wanted.engine_paths)
        return [Row(*row) for row in every] if self.wants("agreement") else []

    def sampled(self, row: Row) -> list[Task]:
        """Return the tasks that sample a row from the engine, one for each repetition.

        Args:
            row: The row.
        """
        half = row.length // 2
        new = min(self.settings.new_tokens or half, half)
        group, shown = self.engine(row.label), f"{row.length} {row.data} {row.method} x {row.batch}"
        given = self._sampling(row, new) | {"batch": row.batch}
        every = range(self.settings.repeats)
        return [Task.of(group, "sample", given | {"repeat": n}, weight=new + 20, shown=shown) for n in every]

    def scored(self, sampled: Task, backend: str) -> Task:
        """Return the task that scores by the trainer what the engine has sampled.

        Args:
            sampled: That task.
            backend: The trainer's.
        """
        given = {"sampled": self.name(sampled)}
        return Task.of(self.trainer(backend), "score", given, weight=20, shown=f"{sampled.shown}, scored")

    def trainer_sampled(self, row: Row) -> Task | None:
        """Return the task that samples from the trainer, for all rows that differ from one in the batch only.

        Args:
            row: The row.
        """
        new = min(self.settings.trainer_new_tokens, row.length // 2)
        given = self._sampling(row, new) | {"batch": 1}
        shown = f"{row.length} {row.data} {row.method}, from the trainer"
        return Task.of(self.trainer(), "sample", given, weight=3 * new, shown=shown) if new else None

    def engine_scored(self, row: Row) -> Task | None:
        """Return the task that scores by the engine what the trainer has sampled.

        Args:
            row: The row.
        """
        sampled = self.trainer_sampled(row)
        if sampled is None:
            return None
        given = {"sampled": self.name(sampled)}
        return Task.of(self.engine(row.label), "score", given, weight=20, shown=f"{sampled.shown}, scored")

    def limit(self, label: str) -> Task:
        """Return the task of `max-model-len`.

        Args:
            label: Which engine.
        """
        given = {"data": self.data, "left": _LEFT, "beyond": _BEYOND}
        return Task.of(self.engine(label), "limit", given, weight=60, shown="max-model-len")

    def decode(self, label: str) -> Task:
        """Return the task of `decode-vs-prefill`.

        Args:
            label: Which engine.
        """
        prompt = min(32, self.span // 4)
        new = min(self.settings.new_tokens or _LONG, self.span - prompt)
        given = self._batch(4) | {"prompt": prompt, "new_tokens": new, "temperature": 1.0, "seed": 0}
        return Task.of(self.engine(label), "decode", given, weight=new, shown="decode-vs-prefill")

    def prefix(self, label: str) -> Task:
        """Return the task of `prefix-cache`.

        Args:
            label: Which engine.
        """
        part = max(1, min(self.span // 8, self.settings.new_tokens or 64))
        given = self._batch(2) | {"prompt": max(1, self.span - 4 * part), "new_tokens": part, "turn": part}
        group = self.engine(label, enable_prefix_caching=True)
        return Task.of(group, "prefix", given, weight=6 * part, shown="prefix-cache")

    def modes(self) -> dict[str, Task]:
        """Return the tasks of `compilation-modes`, by mode."""
        label, given = next(iter(self.settings.engine_paths)), self._observed()
        return {
            mode: Task.of(self.engine(label, mode), "observe", given, weight=300, shown=f"compilation: {mode}")
            for mode in self.settings.modes
        }

    def saved(self) -> Task:
        """Return the task that saves the trainer's weights in batches."""
        given = {"weights": f"weights-{self.state}", "batches": self.settings.refit_batches}
        return Task.of(self.trainer(), "save", given, weight=60, shown="the trainer's weights")

    def from_disk(self, label: str) -> Task:
        """Return the task that observes an engine which has loaded the checkpoint.

        Args:
            label: Which engine.
        """
        given = self._observed() | {"tensors": True}
        return Task.of(self.engine(label), "observe", given, weight=60, shown="load from disk")

    def refitted(self, label: str) -> Task:
        """Return the task that observes an engine which was refitted.

        Args:
            label: Which engine.
        """
        given = self._observed() | {"weights": f"weights-{self.state}", "saved": self.name(self.saved())}
        return Task.of(self.engine(label, load_format="dummy"), "refit", given, weight=300, shown="refit")

    def packed(self) -> Task:
        """Return the task of `packed-vs-padded`."""
        share = max(1, min(self.span, 1024) // sum(_PACKED))
        given = {"data": self.data, "lengths": [share * part + 1 for part in _PACKED]}
        return Task.of(self.trainer(), "packed", given, weight=60, shown="packed-vs-padded")

    def embeddings(self) -> Task:
        """Return the task of `embeddings`."""
        limits = {"zero": self.settings.zero, "identical": self.settings.identical}
        # A process of its own, which never loads the model.
        group = Group.of("trainer", self.state, {}, label="embeddings")
        return Task.of(group, "embeddings", limits, weight=60)

    def stages(self) -> Iterator[list[Task]]:
        """Yield the tasks in an order in which each finds what it needs."""
        rows, paths = self.rows(), list(self.settings.engine_paths)
        first = [task for row in rows if (task := self.trainer_sampled(row))]
        first += [self.packed()] if self.wants("packed-vs-padded") else []
        first += [self.saved()] if self.wants("refit") else []
        first += [self.embeddings()] if self.wants("embeddings") and self.once else []
        yield list(dict.fromkeys(first))
        makers = {"max-model-len": self.limit, "decode-vs-prefill": self.decode, "prefix-cache": self.prefix}
        second = [task for row in rows for task in self.sampled(row)]
        second += [task for row in rows if (task := self.engine_scored(row))]
        second += [make(path) for name, make in makers.items() if self.wants(name) for path in paths]
        if self.wants("refit"):
            second += [make(path) for path in paths for make in (self.from_disk, self.refitted)]
        second += self.modes().values() if self.wants("compilation-modes") and self.once else []
        yield list(dict.fromkeys(second))
        backends = self.known.backends
        yield [self.scored(task, backend) for row in rows for task in self.sampled(row) for backend in backends]

    def _sampling(self, row: Row, new: int) -> dict[str, Any]:
        chosen = {"temperature": self.settings.temperature, "top_p": self.settings.top_p}
        warm = chosen if row.method == "sampling" else {"temperature": 0.0, "top_p": 1.0}
        return {"data": row.data, "prompt": row.length - new, "new_tokens": new, "seed": 0} | warm

    def _batch(self, size: int) -> dict[str, Any]:
        return {"data": self.data, "batch": min(size, max(self.settings.batches))}

    def _observed(self) -> dict[str, Any]:
        new = max(1, min(32, self.span // 4))
        return self._batch(4) | {"prompt": max(2, min(256, self.span // 2)), "new_tokens": new}
