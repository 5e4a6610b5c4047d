"""Which ways to use the target of each patch are gone, on which releases, and why not the others.

The rule is that with a patch applied every way to use its target behaves as in the release that carries the fix, and
that nothing which worked unpatched stops working or starts to be wrong in silence. ``RULE`` is its list of ways.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

RULE = (
    "call by position and by keyword",
    "eager",
    "compile, backend eager",
    "compile, backend aot_eager",
    "compile, backend inductor",
    "compile, fullgraph",
    "no checkpointing",
    "checkpointing, non-reentrant",
    "checkpointing, reentrant",
    "checkpointing, torch's wrapper, non-reentrant",
    "checkpointing, torch's wrapper, reentrant",
    "DDP",
    "DDP, find_unused_parameters",
    "FSDP2",
    "LoRA",
    "Trainer",
    "autocast",
    "deepcopy",
    "pickle",
    "subclass",
)
"""Calls, copies, pickles and subclasses of the replaced callables themselves are tried for all: ``structure.py``."""


@dataclass(frozen=True)
class Subject:
    """What some patches are about.

    Attributes:
        name: Its name.
        patches: The ids of the patches, with wildcards.
        module: The module beside this one whose function ``ways`` yields its ways.
        arguments: What that is called with.
        environments: Where they are gone, each with the options of ``ways`` there, which spare some the slow ones.
        fixed: The release that carries the fix, None if no release does.
        covers: Names of ways, with wildcards, by the way of the rule that they are.
        leaves_out: Why not, by way of the rule.
        limits: What a release cannot do for a reason of its own, without the patch either: part of the error, by
            environment and way, with wildcards.
        open: Ways that are wrong without and with the patch, in releases outside of its range, by environment.
    """

    name: str
    patches: tuple[str, ...]
    module: str
    environments: Mapping[str, Mapping[str, object]]
    covers: Mapping[str, str]
    leaves_out: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    fixed: str | None = None
    limits: Mapping[tuple[str, str], str] = field(default_factory=dict)
    open: Mapping[str, str] = field(default_factory=dict)


WITH_PEFT = {"5.4.0": "0.21.2", "5.5.0": "0.18.0", "5.8.1": "0.21.2", "5.9.0": "0.19.0", "5.24.0": "0.21.2"}
"""The releases that the default run measures beside PEFT; elsewhere the ways of LoRA bring it themselves."""


def transformers(**compiles):
    """Return environments by release, given as ``v5_5_0="some"``."""
    return {beside_peft(release[1:].replace("_", ".")): {"compiles": which} for release, which in compiles.items()}


def beside_peft(version):
    """Return the environment of the default run that has this transformers."""
    peft = WITH_PEFT.get(version)
    return f"peft=={peft} & transformers=={version}" if peft else f"transformers=={version}"


KV_SHARING = {
    "call by position and by keyword": "called by position",
    "eager": "checkpointing none",
    "compile, backend eager": "compile eager, *",
    "compile, backend aot_eager": "compile aot_eager, *",
    "compile, backend inductor": "compile inductor, *",
    "compile, fullgraph": "compile aot_eager fullgraph, checkpointing *",
    "no checkpointing": "* checkpointing none",
    "checkpointing, non-reentrant": "checkpointing enabled non-reentrant",
    "checkpointing, reentrant": "checkpointing enabled reentrant",
    "checkpointing, torch's wrapper, non-reentrant": "checkpointing wrapped non-reentrant",
    "checkpointing, torch's wrapper, reentrant": "checkpointing wrapped reentrant",
    "DDP": "DDP, *",
    "DDP, find_unused_parameters": "DDP find_unused_parameters, *",
    "FSDP2": "FSDP2, *",
    "LoRA": "LoRA, *",
    "Trainer": "Trainer, *",
    "autocast": "autocast, *",
    "deepcopy": "deepcopy",
    "pickle": "pickle",
    "subclass": "subclass",
}

STATE_SPACE = KV_SHARING | {
    "eager": "*, eager, a mask",
    "compile, backend eager": "compile eager *",
    "compile, backend aot_eager": "compile aot_eager *",
    "compile, backend inductor": "compile inductor *",
    "compile, fullgraph": "compile aot_eager fullgraph, *",
    "no checkpointing": "checkpointing none",
}

MAMBA_COMPILED = (("eager", "Mamba2"), ("aot_eager", "Mamba"), ("inductor", "Mamba"))

NEMO = (
    "nemo-automodel==0.3.0 & transformers==5.9.0",
    "nemo-automodel==0.4.0 & transformers==5.5.0",
    "nemo-automodel==0.5.0 & transformers==5.8.1",
    "nemo-automodel==0.6.0 & transformers==5.12.1",
    "nemo-automodel==0.6.0 & transformers==5.24.0",
    "nemo-automodel==0.7.0 & transformers==5.18.0",
)


def without(reason, *which):
    """Return a reason for each of some ways of the rule, given by how they begin."""
    return {way: reason for way in RULE for start in which if way.startswith(start)}


LOADING = without(
    "a checkpoint is loaded before anything is run, compiled or trained, and by one process like by many",
    "eager",
    "compile",
    "no checkpointing",
    "checkpointing",
    "DDP",
    "autocast",
)
ENGINE = without("an engine of vLLM trains nothing and compiles after the weights are there", *RULE[1:17])

INDUCTOR = without("it compiles the graph of aot_eager, and takes minutes for a scan", "compile, backend inductor")

CHUNKS = {way: pattern for way, pattern in KV_SHARING.items() if way not in INDUCTOR} | {
    "eager": "*, eager",
    "no checkpointing": "checkpointing none",
    "compile, backend eager": "compile eager *",
    "compile, backend aot_eager": "compile aot_eager *",
    "compile, fullgraph": "compile aot_eager fullgraph",
}

FILLED = CHUNKS | {
    "eager": "*, by keyword",
    "call by position and by keyword": "*, called by position",
    "DDP": "DDP",
    "DDP, find_unused_parameters": "DDP find_unused_parameters",
    "FSDP2": "FSDP2",
    "LoRA": "LoRA",
    "autocast": "autocast",
}

ACCUMULATION = {
    "call by position and by keyword": "* Trainer",
    "eager": "* Trainer, reported loss",
    "compile, backend eager": "* compile eager",
    "compile, backend aot_eager": "* compile aot_eager",
    "compile, backend inductor": "* compile inductor",
    "compile, fullgraph": "* compile fullgraph",
    "no checkpointing": "* Trainer",
    "checkpointing, non-reentrant": "* checkpointing non-reentrant",
    "checkpointing, reentrant": "* checkpointing reentrant",
    "DDP": "* DDP of two ranks",
    "FSDP2": "* FSDP2",
    "LoRA": "* LoRA",
    "Trainer": "* Trainer",
    "autocast": "* autocast",
    "deepcopy": "* deepcopy",
    "pickle": "* pickle",
    "subclass": "* subclass*",
}
ACCUMULATION_LEFT_OUT = without(
    "the Trainer is told what to divide by before and after the model is called, and wraps it by itself",
    "checkpointing, torch's wrapper",
    "DDP, find_unused_parameters",
)
WEIGHED = {way: pattern for way, pattern in ACCUMULATION.items() if way != "compile, fullgraph"}
"""Of losses that are weighed outside of the model."""
WEIGHED_LEFT_OUT = ACCUMULATION_LEFT_OUT | without(
    "no compiler traces the methods of the Trainer, and the models are as they were", "compile, fullgraph"
)

PACKED = ("Qwen3", "Mistral", "Gemma3")
"""The models of all these releases."""

HYBRIDS = (
    "NemotronH",
    "FalconH1",
    "Bamba",
    "GraniteMoeHybrid",
    "Zamba2",
    "Jamba",
    "Lfm2",
    "Lfm2Moe",
    "Lfm3",
)

DELTA_NETS = {"5.2.0": ("qwen3_5", "qwen3_5_moe", "qwen3_next")}
DELTA_NETS["5.3.0"] = (*DELTA_NETS["5.2.0"], "olmo_hybrid")
"""The models with gated delta nets that a release has."""

SUBJECTS = (
    Subject(
        "KV sharing in Gemma 4",
        patches=("transformers.gemma4_kv_sharing_*",),
        module="kv_sharing",
        arguments=("gemma4",),
        environments=transformers(v5_5_0="fullgraph", v5_5_1="all", v5_5_2="nothing", v5_8_1="some", v5_24_0="some"),
        fixed="transformers==5.9.0",
        covers=KV_SHARING,
        leaves_out={},
    ),
    Subject(
        "KV sharing in Gemma 3n",
        patches=("transformers.gemma3n_kv_sharing_*",),
        module="kv_sharing",
        arguments=("gemma3n",),
        environments=transformers(
            v4_53_0="nothing",
            v4_55_4="some",
            v4_56_0="some",
            v5_0_0="some",
            v5_5_4="some",
            v5_6_0="nothing",
            v5_8_1="all",
            v5_24_0="some",
        ),
        fixed="transformers==5.9.0",
        covers=KV_SHARING,
        leaves_out={},
        # 4.53.0 raises under its own reentrant checkpointing, and does not load what is offloaded and tied;
        # 4.55.4 and 4.56.0 warn of SDPA in training, and torch traces no logging without a break, nor how 4.55.4 makes
        # its cache.
        limits={
            ("transformers==4.53.0", "*checkpointing*"): "backward through the graph a second time",
            ("transformers==4.53.0", "accelerate.cpu_offload"): "Cannot copy out of meta tensor",
            **{
                (f"transformers=={version}", "compile aot_eager fullgraph, checkpointing none"): "logging.Logger method"
                for version in ("4.55.4", "4.56.0")
            },
            ("transformers==4.55.4", "compile * use_cache=True"): "Unsupported hasattr call",
        },
    ),
    Subject(
        "accumulated gradients in transformers",
        patches=("transformers.trainer_divides_*",),
        module="accumulation",
        environments={
            beside_peft("5.2.0"): {"families": "llama", "compiles": ""},
            beside_peft("5.4.0"): {"families": "llama", "compiles": "llama"},
            beside_peft("5.5.3"): {"families": "llama", "compiles": ""},
        },
        fixed="transformers==5.5.4",
        covers=ACCUMULATION,
        leaves_out=ACCUMULATION_LEFT_OUT,
    ),
    Subject(
        "added-up losses in transformers",
        patches=("transformers.accepts_loss_kwargs_dropped", "transformers.router_loss_added_up"),
        module="accumulation",
        environments={
            beside_peft("4.49.0"): {"families": "mamba mixtral", "compiles": ""},
            beside_peft("5.8.1"): {"families": "mamba classifier mixtral", "compiles": ""},
            beside_peft("5.24.0"): {
                "families": "classifier gemma3_classifier wav2vec2_ctc qwen2_audio mixtral",
                "compiles": "mixtral",
            },
        },
        covers=WEIGHED,
        leaves_out=WEIGHED_LEFT_OUT,
        limits={(beside_peft("5.24.0"), "wav2vec2_ctc pickle"): "Serialization of parametrized modules"},
    ),
    Subject(
        "means of means in transformers",
        patches=("transformers.accumulation_mean_of_means",),
        module="accumulation",
        environments={
            beside_peft("4.49.0"): {"families": "bert", "compiles": "bert"},
            beside_peft("5.8.1"): {"families": "qwen3_vl_moe", "compiles": ""},
            beside_peft("5.24.0"): {"families": "qwen3_vl_moe", "compiles": ""},
        },
        covers=WEIGHED,
        leaves_out=WEIGHED_LEFT_OUT,
    ),
    Subject(
        "outputs that transformers records",
        patches=("transformers.recorded_outputs_*",),
        module="recorded_outputs",
        environments=transformers(
            v4_54_0="nothing", v5_0_0="nothing", v5_2_0="nothing", v5_22_2="nothing", v5_24_0="all"
        )
        | {"transformers==4.53.0": {"models": "switch"}},
        covers=KV_SHARING,
        leaves_out={},
    ),
    Subject(
        "accumulated losses in transformers",
        patches=("transformers.*_loss_ignores_token_count", "transformers.accepts_loss_kwargs_denied"),
        module="accumulation",
        environments={
            beside_peft("4.50.0"): {"families": "gemma3", "compiles": ""},
            # Gemma 3n of 4.53.0 makes NaN of rows that are padded, and cannot be checkpointed reentrantly.
            beside_peft("4.56.0"): {"families": "gemma3n qwen2_5_vl", "compiles": ""},
            beside_peft("5.5.0"): {"families": "gemma3n gemma4", "compiles": ""},
            beside_peft("5.5.4"): {"families": "gemma3n gemma4", "compiles": ""},
            beside_peft("5.8.1"): {"families": "gemma3 qwen2_5_vl", "compiles": "gemma3"},
            beside_peft("5.16.1"): {"families": "gemma3", "compiles": ""},
            beside_peft("5.24.0"): {"families": "gemma3n gemma4 qwen2_5_vl", "compiles": "qwen2_5_vl"},
        },
        covers=ACCUMULATION,
        leaves_out=ACCUMULATION_LEFT_OUT,
    ),
    Subject(
        "text without types of tokens",
        patches=("transformers.*_text_needs_token_type_ids", "transformers.paligemma_text_*"),
        module="token_types",
        environments={
            "transformers==4.57.6": {"families": "paligemma", "compiles": "", "packs": False},
            "transformers==5.0.0": {"families": "gemma3 paligemma", "compiles": ""},
            beside_peft("5.5.0"): {"families": "gemma3 gemma4", "compiles": ""},
            "transformers==5.5.4": {"compiles": "gemma3"},
            beside_peft("5.8.1"): {"families": "paligemma", "compiles": ""},
            beside_peft("5.24.0"): {"families": "paligemma", "compiles": ""},
        },
        fixed=beside_peft("5.9.0"),
        covers={
            "call by position and by keyword": "* called by position",
            "eager": "* checkpointing none",
            "compile, backend eager": "* compile eager*",
            "compile, backend aot_eager": "* compile aot_eager*",
            "compile, backend inductor": "* compile inductor*",
            "compile, fullgraph": "* compile aot_eager fullgraph*",
            "no checkpointing": "* checkpointing none",
            "checkpointing, non-reentrant": "* checkpointing enabled non-reentrant",
            "checkpointing, reentrant": "* checkpointing enabled reentrant",
            "checkpointing, torch's wrapper, non-reentrant": "* checkpointing wrapped non-reentrant",
            "checkpointing, torch's wrapper, reentrant": "* checkpointing wrapped reentrant",
            "DDP": "* DDP, *",
            "DDP, find_unused_parameters": "* DDP find_unused_parameters, *",
            "FSDP2": "* FSDP2, *",
            "LoRA": "* LoRA, *",
            "Trainer": "* Trainer, *",
            "autocast": "* autocast, *",
            "deepcopy": "* deepcopy",
            "pickle": "* pickle",
            "subclass": "* subclass",
        },
        leaves_out={},
        # With types of zeros, unpatched, it raises the same.
        limits={
            ("transformers==5.5.4", "gemma4, FSDP2, checkpointing enabled reentrant"): "through the graph a second time"
        },
    ),
    Subject(
        "layers that stay whole in transformers",
        patches=("transformers.absent_no_split_modules",),
        module="no_split_modules",
        environments={
            "transformers==4.50.0": {"families": "Gemma3"},
            "transformers==4.56.0": {"families": "Gemma3"},
            beside_peft("5.5.0"): {},
            beside_peft("5.24.0"): {},
        },
        covers={
            "FSDP2": "* FSDP2",
            "LoRA": "* LoRA",
            "deepcopy": "* deepcopy",
            "pickle": "* pickle",
            "subclass": "* subclass",
        },
        leaves_out=without("in every form by structure.py", "call")
        | without("names are read by who places or shards a model, before it runs", *RULE[1:13], "Trainer", "autocast"),
    ),
    Subject(
        "packing",
        patches=("transformers.packing_under_mask*", "transformers.gpt_oss_masks_*", "transformers.masks_*"),
        module="packing",
        environments={
            "transformers==4.53.1": {"families": PACKED, "compiles": "nothing"},
            "transformers==4.55.0": {"families": (*PACKED, "GptOss"), "compiles": "nothing"},
            "transformers==5.22.2": {"families": (*PACKED, "Gemma4", "GptOss"), "compiles": "some"},
            "transformers==5.23.0": {"families": (*PACKED, "Gemma4", "GptOss", "Afmoe"), "compiles": "nothing"},
            beside_peft("5.24.0"): {"families": (*PACKED, "Gemma4", "GptOss", "Afmoe"), "compiles": "all"},
        },
        covers=KV_SHARING
        | {
            "eager": "Mistral, eager, *",
            "no checkpointing": "checkpointing none",
            "compile, backend aot_eager": "compile aot_eager*",
        },
        leaves_out={},
    ),
    Subject(
        "state-space layers",
        patches=(
            "transformers.hybrid_masks_without_position_ids",
            "transformers.hybrid_models_drop_seq_idx",
            "transformers.lfm2_convolution_mask",
            "transformers.mamba_packed_state",
            "transformers.short_conv_packed_state",
            "transformers.single_row_padding",
        ),
        module="state_space",
        environments={
            "transformers==4.47.1": {"families": ("Jamba",), "compiles": ()},
            # Bamba refuses keywords here.
            "transformers==4.48.0": {"families": ("Bamba",), "compiles": (), "keywords": False},
            "transformers==4.54.0": {"families": ("FalconH1", "GraniteMoeHybrid", "Zamba2", "Lfm2"), "compiles": ()},
            "transformers==5.1.0": {"families": ("Zamba2", "FalconH1", "Bamba"), "compiles": ()},
            beside_peft("5.4.0"): {"families": ("NemotronH", "Lfm2"), "compiles": ()},
            "transformers==5.14.1": {"families": ("Jamba", "FalconH1", "Lfm2Moe"), "compiles": ()},
            beside_peft("5.24.0"): {"families": HYBRIDS},
        },
        covers=STATE_SPACE,
        leaves_out={},
        # Step by step Zamba2's state rounds otherwise than in chunks, by 2e-4.
        open={beside_peft("5.24.0"): "Zamba2, decoding goes on*"},
    ),
    Subject(
        "state-space layers alone",
        patches=("transformers.mamba_models_packed_state",),
        module="state_space",
        environments={
            "transformers==4.49.0": {"families": ("Mamba2", "Mamba"), "compiles": ()},
            "transformers==5.0.0": {"families": ("FalconMamba", "Mamba2"), "compiles": ()},
            "transformers==5.14.1": {"families": ("Mamba", "FalconMamba"), "compiles": ()},
            beside_peft("5.24.0"): {"families": ("Mamba", "Mamba2", "FalconMamba"), "compiles": MAMBA_COMPILED},
        },
        covers=STATE_SPACE,
        leaves_out={},
        limits={
            (f"transformers=={version}", "*Mamba, packed on top of a cache"): "out of bounds for dimension 2"
            for version in ("4.49.0", "5.0.0", "5.14.1")
        },
    ),
    Subject(
        "caches of hybrid models",
        patches=("transformers.hybrid_cache_is_falsy",),
        module="hybrid_cache",
        environments={
            "transformers==4.54.0": {"compiles": ()},
            "transformers==4.55.2": {},
        },
        fixed="transformers==4.55.3",
        covers={way: pattern for way, pattern in KV_SHARING.items() if "compile" not in way}
        | {
            "call by position and by keyword": "*, called by position",
            "eager": "*, by keyword",
            "compile, backend eager": "*, compile eager",
            "compile, backend aot_eager": "*, compile aot_eager",
            "no checkpointing": "checkpointing none",
            "DDP": "DDP",
            "DDP, find_unused_parameters": "DDP find_unused_parameters",
            "FSDP2": "FSDP2",
            "LoRA": "LoRA",
            "autocast": "autocast",
        },
        leaves_out=without("it compiles the graphs of aot_eager", "compile, backend inductor")
        | without("these releases look at values of `cache_position`, and make several graphs", "compile, fullgraph"),
    ),
    Subject(
        "gated delta nets",
        patches=tuple(
            f"transformers.{family}_packed_state"
            for family in (*DELTA_NETS["5.3.0"], "kimi_linear", "bailing_hybrid", "lara_mini")
        ),
        module="linear_attention",
        environments={
            "transformers==4.57.1": {"families": ("qwen3_next",), "compiles": "nothing"},
            "transformers==5.2.0": {"families": DELTA_NETS["5.2.0"], "compiles": "nothing"},
            "transformers==5.3.0": {"families": DELTA_NETS["5.3.0"], "compiles": "nothing"},
            beside_peft("5.8.1"): {"families": DELTA_NETS["5.3.0"], "compiles": "some"},
            "transformers==5.14.1": {"families": DELTA_NETS["5.3.0"], "compiles": "nothing"},
            beside_peft("5.24.0"): {
                "families": (*DELTA_NETS["5.3.0"], "kimi_linear", "bailing_hybrid", "lara_mini"),
                "compiles": "all",
            },
        },
        covers=KV_SHARING
        | {
            "eager": "qwen3_5, eager",
            "no checkpointing": "checkpointing none",
            "compile, backend aot_eager": "compile aot_eager*",
        },
        leaves_out={},
    ),
    Subject(
        "Qwen-VL in transformers",
        patches=("transformers.qwen_vl_*", "transformers.subclass_conversion_mapping", "peft.adapter_names_*"),
        module="qwen_vl",
        environments={beside_peft(v): {} for v in ("5.4.0", "5.5.4", "5.9.0", "5.12.1", "5.13.0", "5.24.0")},
        covers={
            "call by position and by keyword": "* by keyword and device_map",
            "LoRA": "* LoRA*",
            "deepcopy": "* deepcopy, saved",
            "pickle": "* pickle, saved",
            "subclass": "* by a subclass, with the head",
        },
        # The rules of these releases lack the tower, and a third of an old-named adapter is about it.
        open={beside_peft(version): "* LoRA of old names, *" for version in ("5.4.0", "5.5.4")},
        leaves_out=LOADING
        | without("from_pretrained loads before it is sharded", "FSDP2")
        | without("it saves by save_pretrained, which is tried by itself", "Trainer"),
    ),
    Subject(
        "Qwen3.5 in transformers",
        patches=("transformers.qwen3_5_reads_*", "transformers.qwen3_5_saved_*"),
        module="qwen3_5",
        environments={beside_peft(v): {} for v in ("5.2.0", "5.4.0", "5.5.4", "5.24.0")},
        covers={
            "call by position and by keyword": "* by keyword and device_map",
            "LoRA": "* LoRA*",
            "deepcopy": "* deepcopy, saved",
            "pickle": "* pickle, saved",
            "subclass": "* by a subclass",
        },
        leaves_out=LOADING
        | without("from_pretrained loads before it is sharded", "FSDP2")
        | without("it saves by save_pretrained, which is tried by itself", "Trainer"),
    ),
    Subject(
        "Nemotron-H in transformers",
        patches=("transformers.nemotron_h_saved_*", "transformers.nemotron_h_reads_*"),
        module="nemotron_h",
        environments={beside_peft(v): {} for v in ("5.3.0", "5.15.1", "5.16.0", "5.24.0")},
        covers={
            "call by position and by keyword": "* by keyword and device_map",
            "LoRA": "LoRA*",
            "deepcopy": "deepcopy, saved",
            "pickle": "pickle, saved",
            "subclass": "* by a subclass",
        },
        leaves_out=LOADING
        | without("from_pretrained loads before it is sharded", "FSDP2")
        | without("it saves by save_pretrained, which is tried by itself", "Trainer"),
    ),
    Subject(
        "Mamba-2 by chunks in transformers",
        patches=("transformers.mamba2_chunk_scan",),
        module="chunk_scan",
        environments={
            "transformers==4.49.0": {"families": ("Zamba2",), "whole": False, "packs": False},
            "transformers==5.3.0": {"families": ("NemotronH", "Zamba2"), "whole": False},
            "transformers==5.14.1": {"families": ("NemotronH", "Zamba2"), "parts": True, "packs": False},
        },
        fixed="transformers==5.15.0",
        covers=CHUNKS,
        leaves_out=INDUCTOR,
    ),
    Subject(
        "tokens on top of a filled cache in transformers",
        patches=("transformers.selective_scan_starts_over",),
        module="filled_cache",
        arguments=("transformers.selective_scan_starts_over",),
        environments={
            "transformers==5.15.0": {"families": ("Jamba", "Mamba"), "whole": False},
            beside_peft("5.24.0"): {"families": ("Jamba", "Zamba", "FalconMamba", "Mamba")},
        },
        covers=FILLED,
        leaves_out=INDUCTOR,
    ),
    Subject(
        "tokens on top of a filled cache in transformers before 5.15",
        patches=("transformers.hybrid_layers_start_over",),
        module="filled_cache",
        arguments=("transformers.hybrid_layers_start_over",),
        environments={
            "transformers==4.48.0": {
                "families": ("Bamba", "Jamba", "Zamba", "Mamba2"),
                "whole": False,
                "old": True,
            },
            "transformers==5.3.0": {
                "families": ("NemotronH", "FalconH1", "Zamba2", "Lfm2", "Qwen3Next", "OlmoHybrid"),
                "whole": False,
                "old": True,
            },
            "transformers==5.14.1": {"families": ("Jamba", "Zamba", "Lfm2")},
        },
        covers=FILLED,
        leaves_out=INDUCTOR,
    ),
    Subject(
        "groups of Mamba-2 in transformers",
        patches=("transformers.mamba2_head_groups",),
        module="head_groups",
        environments={"transformers==4.49.0": {}, "transformers==4.51.3": {"whole": False}},
        fixed="transformers==4.52.1",
        covers=CHUNKS,
        leaves_out=INDUCTOR,
    ),
    Subject(
        "time steps of Mamba-2 in transformers",
        patches=("transformers.mamba2_time_step_limit*",),
        module="time_steps",
        environments={
            "transformers==4.49.0": {"families": ("Zamba2",), "whole": False, "separate_paths": True},
            "transformers==5.3.0": {"whole": False, "separate_paths": True},
            "transformers==5.14.1": {"parts": True, "separate_paths": True},
            "transformers==5.15.0": {"whole": False, "parts": True},
            beside_peft("5.24.0"): {"parts": True},
        },
        covers=CHUNKS,
        leaves_out=INDUCTOR,
    ),
    Subject(
        "Mamba-2 by kernels in transformers",
        patches=("transformers.*_kernel_dtype",),
        module="mamba2_kernels",
        environments={
            "transformers==4.49.0": {"families": "zamba2", "compiles": ""},
            "transformers==5.3.0": {"families": "nemotron", "compiles": "nemotron"},
            "transformers==5.14.1": {"compiles": ""},
        },
        fixed="transformers==5.15.0",
        covers={
            "call by position and by keyword": "* by keyword",
            "eager": "* kept in float32",
            "compile, backend eager": "* compile eager",
            "compile, backend aot_eager": "* compile aot_eager",
            "compile, backend inductor": "* compile inductor",
            "compile, fullgraph": "* compile * fullgraph",
            "no checkpointing": "* gradients",
            "checkpointing, torch's wrapper, non-reentrant": "* checkpointing non-reentrant",
            "checkpointing, torch's wrapper, reentrant": "* checkpointing reentrant",
            "LoRA": "* LoRA",
            "autocast": "* autocast",
            "deepcopy": "* deepcopy",
            "pickle": "* pickle",
            "subclass": "* subclass",
        },
        leaves_out=without(
            "a layer is one module that is called with tensors, and kernels need a GPU, which no test here has",
            "checkpointing, non-reentrant",
            "checkpointing, reentrant",
            "DDP",
            "FSDP2",
            "Trainer",
        ),
    ),
    Subject(
        "classes of tokenizers in transformers",
        patches=("transformers.byte_level_tokenizer_*", "transformers.remote_tokenizer_*"),
        module="tokenizer_classes",
        environments={f"transformers=={v}": {} for v in ("5.3.0", "5.10.2", "5.12.0", "5.21.1")},
        fixed="transformers==5.22.0",
        covers={
            "call by position and by keyword": "by keyword",
            "deepcopy": "deepcopy",
            "pickle": "pickle",
            "subclass": "by a subclass",
        },
        leaves_out=without("a tokenizer is loaded before anything is done with a model", *RULE[1:17]),
    ),
    Subject(
        "LoRA in the towers of Gemma 4",
        patches=("peft.gemma4_clippable_*",),
        module="peft_clippable",
        environments={beside_peft(v): {} for v in ("5.5.0", "5.9.0", "5.24.0")},
        covers={
            "eager": "trains as by the names inside",
            "LoRA": "* target",
            "deepcopy": "deepcopy",
            "pickle": "pickle",
            "subclass": "subclass",
        },
        leaves_out=without(
            "module for module, the model is that which PEFT makes itself of the names inside",
            "compile",
            "no checkpointing",
            "checkpointing",
            "DDP",
            "FSDP2",
            "Trainer",
            "autocast",
        )
        | without("in every form by structure.py", "call"),
        limits={(beside_peft("5.24.0"), "saved and loaded by transformers"): "use a version >= 0.22.0"},
    ),
    Subject(
        "the talker's configuration in Qwen3-Omni",
        patches=("transformers.qwen3_omni_talker_*",),
        module="qwen3_omni_talker",
        environments={beside_peft("5.4.0"): {}, "transformers==5.19.0": {}},
        fixed="transformers==5.20.0",
        covers={
            "call by position and by keyword": "objects",
            "deepcopy": "deepcopy",
            "pickle": "pickle",
            "subclass": "subclass",
        },
        leaves_out=without("a model is built from a configuration before anything is done with it", *RULE[1:17]),
    ),
    Subject(
        "code of models in the hub's cache",
        patches=("transformers.dynamic_module_symlinks",),
        module="remote_code",
        environments={"transformers==5.10.1": {}, "transformers==5.12.1": {}},
        fixed="transformers==5.13.0",
        covers={},
        leaves_out=without("code is copied before it is run, by a function that takes two paths", *RULE),
    ),
    Subject(
        "integers for floats in configurations",
        patches=("huggingface_hub.strict_int_*",),
        module="strict_configs",
        environments={beside_peft(v): {} for v in ("5.4.0", "5.24.0")},
        covers={
            "call by position and by keyword": "by keyword",
            "eager": "a model trains as by floats",
            "deepcopy": "deepcopy",
            "pickle": "pickle",
            "subclass": "subclass*",
        },
        leaves_out=without(
            "a model is built from a configuration before anything is done with it",
            "compile",
            "no checkpointing",
            "checkpointing",
            "DDP",
            "FSDP2",
            "LoRA",
            "Trainer",
            "autocast",
        ),
    ),
    Subject(
        "tensors sent to processes that see other GPUs",
        patches=("torch.cuda_ipc_device_index",),
        module="cuda_ipc",
        environments={"torch==2.13.0": {}},
        covers={
            "call by position and by keyword": "by keyword",
            "eager": "a tensor",
            "deepcopy": "deepcopy",
            "pickle": "pickle *",
            "subclass": "subclass",
        },
        leaves_out=without("a tensor is sent outside of what is compiled, and by no model", *RULE[2:17]),
    ),
    Subject(
        "idle towers under FSDP2",
        patches=("torch.fsdp2_idle_tower",),
        module="fsdp2_idle_tower",
        environments={"torch==2.13.0": {}},
        covers={
            "eager": "images *",
            "compile, backend eager": "compile eager",
            "compile, backend aot_eager": "compile aot_eager",
            "compile, backend inductor": "compile inductor",
            "compile, fullgraph": "compile fullgraph",
            "no checkpointing": "images *",
            "checkpointing, non-reentrant": "checkpointing enabled non-reentrant",
            "checkpointing, reentrant": "checkpointing enabled reentrant",
            "checkpointing, torch's wrapper, non-reentrant": "checkpointing wrapped non-reentrant",
            "checkpointing, torch's wrapper, reentrant": "checkpointing wrapped reentrant",
            "FSDP2": "images *",
            "LoRA": "adapters",
            "autocast": "autocast",
            "deepcopy": "deepcopy",
            "pickle": "pickle",
            "subclass": "subclass",
        },
        leaves_out=without("in every form by structure.py", "call")
        | without("FSDP2 is what is tried, and torch takes no model for both", "DDP")
        | without("transformers does not come with torch, and its Trainer accumulates as is tried", "Trainer"),
    ),
    Subject(
        "Qwen-VL in nemo-automodel",
        patches=("nemo_automodel.qwen_vl_*",),
        module="automodel_qwen_vl",
        environments={environment: {} for environment in NEMO},
        fixed=NEMO[-1],
        covers={
            "FSDP2": "* FSDP2",
            "LoRA": "* LoRA",
            "deepcopy": "* deepcopy",
            "pickle": "* pickle",
            "subclass": "* by a subclass",
        },
        leaves_out=LOADING
        | without("Automodel has trainers of its own", "Trainer")
        | without("the Checkpointer alone calls it, as structure.py does in every form", "call"),
    ),
    Subject(
        "dtype in nemo-automodel",
        patches=("nemo_automodel.dtype_*",),
        module="automodel_dtype",
        environments={environment: {} for environment in NEMO[1:]},
        fixed=NEMO[-1],
        covers={"call by position and by keyword": "dtype=*", "subclass": "a subclass of the loader"},
        leaves_out=LOADING
        | without("Automodel has trainers of its own", "Trainer")
        | without("it shards after the dtype has been restored", "FSDP2")
        | without("adapters are added after that", "LoRA")
        | without("a loaded model is like any other", "deepcopy", "pickle"),
    ),
    Subject(
        "dummy load in vLLM",
        patches=("vllm.dummy_load_*",),
        module="vllm_dummy_load",
        environments={f"vllm=={v}": {} for v in ("0.6.3", "0.9.0.1", "0.9.1", "0.10.1", "0.11.0", "0.33.0")},
        covers={"deepcopy": "deepcopy", "pickle": "pickle"},
        leaves_out=ENGINE | without("in every form, and of the loader, by structure.py", "call", "subclass"),
    ),
    Subject(
        "layerwise reload in vLLM",
        patches=("vllm.layerwise_reload_composed_loader", "vllm.layerwise_reload_unsent_tensors"),
        module="vllm_layerwise_reload",
        environments={f"vllm=={v}": {} for v in ("0.16.0", "0.23.0", "0.33.0")},
        covers={"deepcopy": "deepcopy", "pickle": "pickle"},
        leaves_out=ENGINE | without("in every form by structure.py", "call", "subclass"),
    ),
    Subject(
        "the default loader under layerwise reload in vLLM",
        patches=("vllm.layerwise_reload_direct_loader",),
        module="vllm_direct_loader",
        environments={f"vllm=={v}": {} for v in ("0.16.0", "0.23.0", "0.33.0")},
        covers={"call by position and by keyword": "by *", "deepcopy": "deepcopy", "pickle": "pickle"},
        leaves_out=ENGINE | without("in every form by structure.py", "subclass"),
    ),
    Subject(
        "weights that models copy under layerwise reload in vLLM",
        patches=("vllm.layerwise_reload_bare_copies",),
        module="vllm_bare_copies",
        environments={f"vllm=={v}": {} for v in ("0.16.0", "0.33.0")},
        covers={"deepcopy": "deepcopy", "pickle": "pickle"},
        leaves_out=ENGINE | without("in every form by structure.py", "call", "subclass"),
    ),
    Subject(
        "parts of layers under layerwise reload in vLLM",
        patches=("vllm.layerwise_reload_absent_parts",),
        module="vllm_layer_parts",
        environments={f"vllm=={v}": {} for v in ("0.16.0", "0.33.0")},
        covers={"deepcopy": "deepcopy", "pickle": "pickle"},
        leaves_out=ENGINE | without("in every form by structure.py", "call", "subclass"),
    ),
    Subject(
        "RADIO in vLLM",
        patches=("vllm.radio_*",),
        module="vllm_radio",
        environments={f"vllm=={v}": {} for v in ("0.11.0", "0.33.0")},
        covers={"deepcopy": "deepcopy", "pickle": "pickle", "subclass": "a subclass of the tower"},
        leaves_out=ENGINE | without("in every form by structure.py", "call"),
    ),
    Subject(
        "Nemotron VL in vLLM",
        patches=("vllm.nemotron_vl_*",),
        module="vllm_nemotron_vl",
        environments={f"vllm=={v}": {} for v in ("0.11.0", "0.31.0")},
        covers={"deepcopy": "deepcopy", "subclass": "a subclass of the model"},
        leaves_out=ENGINE
        | without("in every form by structure.py", "call")
        | without("the probe's parts of it are functions, and no process is sent a model", "pickle"),
    ),
    Subject(
        "Voxtral in vLLM",
        patches=("vllm.voxtral_*",),
        module="vllm_voxtral",
        environments={f"vllm=={v}": {} for v in ("0.10.0", "0.33.0")},
        covers={"deepcopy": "deepcopy", "pickle": "pickle", "subclass": "a subclass of the model"},
        leaves_out=ENGINE | without("in every form by structure.py", "call"),
    ),
    Subject(
        "ports in vLLM",
        patches=("vllm.shm_broadcast_*", "vllm.ray_executor_*"),
        module="vllm_ports",
        environments={f"vllm=={v}": {} for v in ("0.6.3", "0.11.0", "0.27.1", "0.33.0")},
        fixed="vllm==0.33.0",
        limits={("vllm==0.6.3", "an engine over two nodes*"): "No module named 'vllm.v1'"},
        covers={},
        leaves_out=ENGINE
        | without("in every form by structure.py", "call", "subclass")
        | without("a queue is sent as its handle, which is read by another", "deepcopy", "pickle"),
    ),
    Subject(
        "KV transfers in vLLM",
        patches=("vllm.kv_transfer_*",),
        module="vllm_kv_transfers",
        environments={f"vllm=={v}": {} for v in ("0.16.0", "0.33.0")},
        covers={"pickle": "the class, pickled", "subclass": "a derived scheduler"},
        leaves_out=ENGINE
        | without("in every form by structure.py", "call")
        | without("a scheduler has sockets and is not copied", "deepcopy"),
    ),
    Subject(
        "the coordinator of data parallel engines in vLLM",
        patches=("vllm.dp_coordinator_*",),
        module="vllm_dp_coordinator",
        environments={f"vllm=={v}": {} for v in ("0.19.0", "0.33.0")},
        covers={},
        leaves_out=ENGINE
        | without("in every form by structure.py", "call", "subclass")
        | without("it is a process, and neither copied nor sent", "deepcopy", "pickle"),
    ),
    Subject(
        "EAGLE drafts in vLLM",
        patches=("vllm.eagle3_*",),
        module="vllm_eagle",
        environments={f"vllm=={v}": {} for v in ("0.27.1", "0.33.0")},
        covers={"deepcopy": "deepcopy"},
        leaves_out=ENGINE
        | without("in every form, and of the loader, by structure.py", "call", "subclass")
        | without("its class belongs to the probe, and no process is sent a draft", "pickle"),
    ),
    Subject(
        "tool parsers in vLLM",
        patches=("vllm.namespace_tool_*",),
        module="vllm_tool_parsers",
        environments={f"vllm=={v}": {} for v in ("0.27.1", "0.33.0")},
        covers={},
        leaves_out=without("it is the import of a module", *RULE),
    ),
    Subject(
        "arguments of tool calls in vLLM",
        patches=("vllm.*_tool_arguments*",),
        module="vllm_tool_arguments",
        environments={
            "vllm==0.10.1": {"parsers": "glm45 step3"},
            "vllm==0.11.1": {"parsers": "glm45 minimax_m2 step3"},
            "vllm==0.20.2": {"parsers": "glm45 glm47 minimax_m2"},
            "vllm==0.23.0": {"parsers": "minicpm5 minimax_m2 poolside_v1 seed_oss", "xml": "mimo qwen3_xml step3p5"},
            "vllm==0.25.1": {"parsers": "mimo minicpm5 minimax_m2 qwen3_coder qwen3_xml seed_oss", "forced": "mimo"},
            "vllm==0.33.0": {"parsers": "minicpm5 seed_oss step3"},
        },
        covers={"call by position and by keyword": "*, whole", "subclass": "*, subclass"},
        leaves_out=ENGINE | without("a parser is made for each request, in the server's process", "deepcopy", "pickle"),
    ),
)
