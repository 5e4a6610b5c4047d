"""What becomes of a run that is interrupted."""

import json
from dataclasses import dataclass

from nrl_patches.diagnose.processes import Bench
from nrl_patches.diagnose.report import as_markdown, headline
from nrl_patches.diagnose.run import diagnose, exit_code
from nrl_patches.diagnose.settings import Settings


@dataclass
class Interrupted(Bench):
    """Processes that have read the model and packed its sequences, when Ctrl-C is pressed."""

    def versions(self, _side, _label=""):
        return {"has transformers": True, "has vllm": True}

    def run(self, tasks):
        for task in tasks:
            found = {"streams": {"real": [1, 2]}, "positions": 64, "problem": "", "model": self.settings.model}
            if task.kind == "packed":
                lines = [[-1.0, -2.0]]
                found = {"alone": lines, "padded": lines, "no mask": lines, "a mask of ones": lines, "applied": []}
            elif task.kind != "prepare":
                raise KeyboardInterrupt
            self._file(task).write_text(json.dumps(found), encoding="utf-8")


def test_ctrl_c_leaves_a_report_of_what_is_done(tmp_path):
    small = {"lengths": (8,), "data": ("real",), "methods": ("greedy",), "batches": (2,), "trainer_new_tokens": 0}
    only = frozenset({"agreement", "packed-vs-padded"})
    settings = Settings(str(tmp_path), only=only, states=("on",), **small)
    outcome = diagnose(Interrupted(settings, tmp_path / "out"), lambda _: None)
    assert [row.verdict for row in outcome.rows] == ["not-run"]
    assert {found.verdict for found in outcome.findings} == {"ok"}
    assert exit_code(outcome) == 130
    assert headline(outcome).startswith("INCOMPLETE")
    assert "| 8 | Real | Greedy | 2 |  |  |  |  | on not-run |" in as_markdown(outcome)
