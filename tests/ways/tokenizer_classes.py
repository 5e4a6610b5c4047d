"""Every way to load a tokenizer by AutoTokenizer; a way returns 0.0 if it is the one of the checkpoint."""

import copy
import json
import pickle
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

from nrl_patches.patches._shared import remote_code, tokenizer_files
from nrl_patches.patches._shared.quiet import quiet

LLAMA = {"tokenizer_class": "LlamaTokenizerFast"}
TYPES = ("deepseek_v3", "deepseek_v32", "llama", "mistral", "of_its_own")
REMOTE = {
    "tokenizer_class": "RemoteTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_remote.RemoteTokenizer"] * 2},
}
LISTED = ("deepseek_v3", "internlm2")
"""Model types whose tokenizers' classes transformers does not believe."""


def auto():
    from transformers import AutoTokenizer

    return AutoTokenizer


def far(tokenizer, folder):
    """How many of the ids, or of the text that they stand for, are not those of the file."""
    ids = tokenizer.encode(tokenizer_files.TEXT, add_special_tokens=False)
    text = tokenizer.decode(ids).removeprefix(" ")
    return float(ids != tokenizer_files.ids_of_file(folder) or text != tokenizer_files.TEXT)


def of_bytes(folder, model_type, change=lambda tokenizer: tokenizer):
    tokenizer_files.write(folder, model_type, **LLAMA)
    return far(change(auto().from_pretrained(folder)), folder)


def named_by_the_model(folder):
    """As older checkpoints have it."""
    tokenizer_files.write(folder, "llama")
    config = {"model_type": "llama", **LLAMA}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return far(auto().from_pretrained(folder), folder)


def beside_code_of_the_model(folder):
    tokenizer_files.write(folder, "llama", **LLAMA)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoProcessor": "processing_remote.RemoteProcessor"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return far(auto().from_pretrained(folder), folder)


def by_keyword(folder):
    from transformers import AutoConfig

    tokenizer_files.write(folder, "llama", **LLAMA)
    config = AutoConfig.from_pretrained(folder)
    return far(auto().from_pretrained(pretrained_model_name_or_path=str(folder), config=config), folder)


def in_a_subfolder(folder):
    inner = tokenizer_files.write(folder / "inner", "llama", **LLAMA)
    (folder / "config.json").write_bytes((inner / "config.json").read_bytes())
    return far(auto().from_pretrained(folder, subfolder="inner"), inner)


def off_the_list(folder):
    """NeMo RL takes DeepSeek's type off transformers' list."""
    from transformers.models.auto import tokenization_auto

    rest = tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS - {"deepseek_v3"}
    names = {k: v for k, v in tokenization_auto.TOKENIZER_MAPPING_NAMES.items() if k != "deepseek_v3"}
    with (
        mock.patch.object(tokenization_auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", rest),
        mock.patch.dict(tokenization_auto.TOKENIZER_MAPPING_NAMES, names, clear=True),
    ):
        return of_bytes(folder, "deepseek_v3")


def by_a_subclass(folder):
    tokenizer_files.write(folder, "llama", **LLAMA)
    kind = type("MyAutoTokenizer", (auto(),), {})
    return far(kind.from_pretrained(folder), folder)


def again(tokenizer):
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        return auto().from_pretrained(saved)


def of_pieces(folder):
    """What is SentencePiece's stays what it was."""
    tokenizer_files.write(folder, "llama", kind="pieces", **LLAMA)
    tokenizer = auto().from_pretrained(folder)
    return float(type(tokenizer).__name__ != "LlamaTokenizer") + far(tokenizer, folder)


def remote(folder, model_type, kind, **trust):
    """Whether it is told by the trust alone if the code is run."""
    tokenizer_files.write(folder, model_type, kind=kind, **REMOTE)
    tokenizer = auto().from_pretrained(folder, **trust)
    return float((type(tokenizer).__name__ == "RemoteTokenizer") != trust.get("trust_remote_code", False))


def ways():
    """Yield the name of each way and the function that goes it."""
    for model_type in TYPES:
        yield f"bytes of {model_type}", partial(apart, partial(of_bytes, model_type=model_type))
    for way in (
        named_by_the_model,
        beside_code_of_the_model,
        by_keyword,
        in_a_subfolder,
        off_the_list,
        by_a_subclass,
        of_pieces,
    ):
        yield way.__name__.replace("_", " "), partial(apart, way)
    changes = {"deepcopy": copy.deepcopy, "pickle": lambda it: pickle.loads(pickle.dumps(it)), "saved": again}
    for name, change in changes.items():
        yield name, partial(apart, partial(of_bytes, model_type="llama", change=change))
    for model_type in LISTED:
        for kind in ("bytes", "none"):
            way = partial(remote, model_type=model_type, kind=kind, trust_remote_code=True)
            yield f"code of {model_type}, {kind} beside it", partial(apart, way)
    untrusted = partial(remote, model_type="internlm2", kind="bytes", trust_remote_code=False)
    yield "code that is not trusted", partial(apart, untrusted)


def apart(way):
    with quiet(), tempfile.TemporaryDirectory() as folder, remote_code.modules_in(Path(folder, "modules")):
        return way(Path(folder, "checkpoint"))
