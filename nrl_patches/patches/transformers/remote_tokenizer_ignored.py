"""A tokenizer with code of its own is not loaded for some types of models, although that code is trusted.

Problem: `AutoTokenizer.from_pretrained` (models/auto/tokenization_auto.py) ignores the code for the model types whose
    checkpoints name wrong classes of tokenizers, whatever `trust_remote_code` says. `deepseek_v3` is one since 5.4.0.
Hit by: checkpoints of other makers that have such a type, as Moonlight has `deepseek_v3`: an error if there is no
    `tokenizer.json`, else a tokenizer that is not the checkpoint's, and nothing is said.
Fix: with `trust_remote_code=True` the code is loaded, as in the fixed release. Without it nothing changes.
Remove when: no supported release is older than transformers 5.12.1.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import remote_code, tokenizer_files
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected=("transformers>=5.3.0,<5.10.4", "transformers>=5.11.0,<5.12.1"),
    upstream=(
        "https://github.com/NVIDIA-NeMo/RL/issues/2764",
        "https://github.com/NVIDIA-NeMo/RL/pull/3116",
    ),
    opt_out="NRL_DISABLE_REMOTE_TOKENIZER_PATCH",
)

patch.rewrite(
    "transformers.models.auto.tokenization_auto:AutoTokenizer.from_pretrained",
    Edit(
        old="if has_remote_code and config_model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS:",
        new="if (has_remote_code and trust_remote_code is not True"
        " and config_model_type in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS):",
    ),
)


@patch.probe
def trusted_code_is_ignored() -> Observation:
    """Load tiny tokenizers with code of their own."""
    from transformers import AutoTokenizer

    evidence = {}
    for model_type in ("deepseek_v3", "internlm2"):
        with quiet(), TemporaryDirectory() as temporary, remote_code.modules_in(Path(temporary, "modules")):
            folder = Path(temporary, "tiny")
            auto_map = {"AutoTokenizer": ["tokenization_remote.RemoteTokenizer", None]}
            tokenizer_files.write(folder, model_type, tokenizer_class="RemoteTokenizer", auto_map=auto_map)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            evidence[model_type] = type(tokenizer).__name__
    return Observation(set(evidence.values()) != {"RemoteTokenizer"}, evidence)
