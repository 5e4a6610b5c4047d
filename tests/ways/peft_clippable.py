"""Every way to adapt the towers of Gemma 4 by the names of their layers; a way returns the part that is wrong.

Right is what PEFT makes itself of the names that lie one deeper, ``q_proj.linear``: module for module, bit for bit.
"""

import copy
import pickle
import tempfile
import warnings
from functools import partial

import torch

from nrl_patches.patches._shared.quiet import quiet

TEXT = {
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "hidden_size": 16,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "global_head_dim": 8,
    "pad_token_id": 0,
}
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "use_clipped_linears": True}
VISION = TOWER | {
    "intermediate_size": 16,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 2,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
AUDIO = TOWER | {"subsampling_conv_channels": [4, 4], "output_proj_dims": 16}
IDS = torch.tensor([[2, 58, 60, 60, 60, 60, 59, 5, 6]])
NAMES = ("q_proj", "o_proj", "gate_proj", "ffw_layer_1")
ONE = "model.vision_tower.encoder.layers.0.self_attn.q_proj"


def model(kind=None):
    """Return a model that clips what its towers are given and return.

    Args:
        kind: What takes the place of the class of its clippable layers.
    """
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    tokens = {"boi_token_id": 58, "eoi_token_id": 59, "image_token_id": 60, "audio_token_id": 61, "video_token_id": 57}
    torch.manual_seed(0)
    config = Gemma4Config(text_config=TEXT, vision_config=VISION, audio_config=AUDIO, **tokens)
    made = Gemma4ForConditionalGeneration(config).eval()
    for layer in clippable(made):
        for end, (lower, upper) in {"input": (-0.5, 0.5), "output": (-0.05, 0.04)}.items():
            getattr(layer, f"{end}_min").fill_(lower)
            getattr(layer, f"{end}_max").fill_(upper)
        layer.__class__ = kind or type(layer)
    return made


def clippable(adapted):
    return [module for module in adapted.modules() if any("Clippable" in c.__name__ for c in type(module).__mro__)]


def config(targets, **options):
    import peft

    return peft.LoraConfig(**{"r": 2, "target_modules": targets, "init_lora_weights": False} | options)


def adapt(targets, base=None, **options):
    import peft

    base = base or model()
    torch.manual_seed(1)
    return peft.get_peft_model(base, config(targets, **options))


def deeper(names):
    """The names of the layers inside the clippable ones, and of those that are in none."""
    inside = "|".join(names)
    return rf".*tower.*\.({inside})\.linear|.*language_model.*\.({inside})"


def apart(one, other):
    """The part of the modules and tensors of two models that are not the same."""
    kinds = [{name: type(module).__name__ for name, module in m.named_modules()} for m in (one, other)]
    tensors = [m.state_dict() for m in (one, other)]
    wrong = len(kinds[0].items() ^ kinds[1].items()) + len(tensors[0].keys() ^ tensors[1].keys())
    wrong += sum(not torch.equal(tensors[0][n], tensors[1][n]) for n in tensors[0].keys() & tensors[1].keys())
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (one, other)]
    return (wrong + len(trained[0] ^ trained[1])) / (len(kinds[0]) + len(tensors[0]))


def run(adapted):
    """The loss of text with an image, and what the tower for audio returns."""
    positions = torch.tensor([[x, y] for y in range(4) for x in range(4)])[None]
    torch.manual_seed(2)
    image, sound = torch.rand(1, 16, 12), torch.rand(1, 16, 4)
    seen = adapted(
        input_ids=IDS,
        pixel_values=image,
        image_position_ids=positions,
        mm_token_type_ids=(IDS == 60).long(),
        labels=IDS,
    )
    tower = next(module for name, module in adapted.named_modules() if name.endswith("audio_tower"))
    return seen.loss + tower(sound, torch.ones(1, 16, dtype=torch.bool))[0].square().mean()


def differ(one, other):
    """How far two models are from each other in the loss and in the gradients of the adapters."""
    found = []
    for adapted in (one, other):
        loss = run(adapted)
        loss.backward()
        grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
        learning = [name for name, grad in grads.items() if grad.any()]
        assert all(any(tower in name for name in learning) for tower in ("vision_tower", "audio_tower"))
        found.append([loss.detach(), *grads.values()])
    return float(not all(map(torch.equal, *found)))


def targeted(targets, names, **options):
    return apart(adapt(targets, **options), adapt(deeper(names), **options))


def clipped():
    """The part of the adapted layers that return what lies outside of their limits."""
    adapted, outside = adapt(list(NAMES)), []
    for layer in clippable(adapted):
        layer.register_forward_hook(
            lambda layer, _, out: outside.append(out.min() < layer.output_min or out.max() > layer.output_max)
        )
    run(adapted)
    assert outside
    return sum(map(bool, outside)) / len(outside)


def same_files(one, other, **options):
    """Whether two adapters are saved as the same bytes, and in which part of the tensors one that is loaded differs."""
    import peft

    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        one.save_pretrained(first)
        other.save_pretrained(second)
        file = "/adapter_model.safetensors"
        with open(first + file, "rb") as a, open(second + file, "rb") as b:  # noqa: PTH123
            if a.read() != b.read():
                return 1.0
        return apart(peft.PeftModel.from_pretrained(model(), first, is_trainable=True, **options), one)


def saved(**options):
    return same_files(adapt(list(NAMES)), adapt(deeper(NAMES)), **options)


def text_only():
    """An adapter that names the text model alone, and one of a model without towers."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    torch.manual_seed(0)
    text = Gemma4ForCausalLM(Gemma4TextConfig(**TEXT))
    alone = adapt(list(NAMES[:3]), base=copy.deepcopy(text))
    by_path = adapt(r"model\.layers.*\.(q_proj|o_proj|gate_proj)", base=text)
    towers = [n for n, _ in adapt(r".*language_model.*\.q_proj").named_parameters() if "tower" in n and "lora" in n]
    return apart(alone, by_path) + len(towers)


def by_transformers():
    """An adapter that was saved by PEFT, loaded by the model itself; and one that is added to it."""
    added, reference = model(), model()
    torch.manual_seed(1)
    reference.add_adapter(config(deeper(NAMES)))  # First: a transformers may refuse this PEFT, whatever is adapted.
    adapted = adapt(list(NAMES))
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        loaded = model()
        loaded.load_adapter(folder)
    expected = {n.removeprefix("base_model.model."): t for n, t in adapted.state_dict().items()}
    found = loaded.state_dict()
    wrong = len(found.keys() ^ expected.keys()) + sum(not torch.equal(found[n], expected[n]) for n in found)
    torch.manual_seed(1)
    added.add_adapter(config(list(NAMES)))
    return wrong / len(expected) + apart(added, reference)


def merged(**options):
    one, other = adapt(list(NAMES), **options), adapt(deeper(NAMES), **options)
    return apart(one.merge_and_unload(), other.merge_and_unload()) + float(not clippable(one))


def without(way):
    """What is left of a model whose adapter is taken away or switched off."""
    adapted, base = adapt(list(NAMES)), model()
    with torch.no_grad():
        if way == "unload":
            found = adapted.unload()
            wrong = {n for n, _ in found.named_modules()} ^ {n for n, _ in base.named_modules()}
            return len(wrong) + float(run(found) != run(base))
        with adapted.disable_adapter():
            off = run(adapted)
        return float(off != run(base) or run(adapted) == off)


def second():
    """A second adapter, of other layers too."""
    found = []
    for first, then in ((list(NAMES), ["q_proj", "v_proj"]), (deeper(NAMES), deeper(["q_proj", "v_proj"]))):
        adapted = adapt(first)
        adapted.add_adapter("second", config(then))
        adapted.set_adapter("second")
        found.append(adapted)
    return apart(*found)


def patterns():
    """A pattern that names the layer, as the target does, and one that names the layer inside."""
    by_name = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"vision_tower.*o_proj": 5, "gate_proj": 7}}
    inside = {
        "rank_pattern": {r"q_proj(\.linear)?": 3},
        "alpha_pattern": {r"vision_tower.*o_proj\.linear": 5, r"gate_proj(\.linear)?": 7},
    }
    one, other = adapt(list(NAMES), **by_name), adapt(deeper(NAMES), **inside)
    scales = [{n: dict(m.scaling) for n, m in a.named_modules() if hasattr(m, "lora_A")} for a in (one, other)]
    kept = one.peft_config["default"].rank_pattern == by_name["rank_pattern"]
    return apart(one, other) + float(scales[0] != scales[1]) + float(not kept)


def named_twice():
    """A layer that is targeted with the one inside, as a pattern without an end does, is adapted once."""
    both = adapt(r".*vision_tower.*(q_proj|o_proj)(\.linear)?")
    return apart(both, adapt(r".*vision_tower.*(q_proj|o_proj)\.linear"))


def excluded():
    """What is excluded by the name of the layer, or of the one inside."""
    by_either = [adapt(list(NAMES), exclude_modules=rf".*tower.*q_proj{end}") for end in ("", r"\.linear")]
    rest = rf"(?!.*tower.*q_proj)({deeper(NAMES)})"
    return sum(apart(one, adapt(rest)) for one in by_either)


def own_layer():
    """A user's own layer for the clippable one is left to PEFT."""
    import peft
    from peft.tuners.lora import Linear
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

    class Mine(Linear):
        def __init__(self, base_layer, adapter_name, **kwargs):
            super().__init__(base_layer.linear, adapter_name, **kwargs)

    registered = config([ONE])
    registered._register_custom_module({Gemma4ClippableLinear: Mine})
    return float(type(peft.get_peft_model(model(), registered).get_submodule(f"base_model.model.{ONE}")) is not Mine)


def other_kinds():
    """The part of the other kinds of adapters that do not refuse as they do without the patch."""
    import peft

    kinds = (peft.LoHaConfig, peft.LoKrConfig, peft.IA3Config, peft.AdaLoraConfig)
    options = ({}, {}, {"feedforward_modules": []}, {"total_step": 10})
    configs = [kind(target_modules=["q_proj"], **more) for kind, more in zip(kinds, options, strict=True)]
    return 1 - sum(map(is_refused, configs)) / len(kinds)


def is_refused(config):
    import peft

    try:
        peft.get_peft_model(model(), config)
    except (ValueError, TypeError) as error:
        return "Gemma4ClippableLinear" in str(error)
    return False


def copied(how):
    adapted = adapt(list(NAMES))
    again = how(adapted)
    return apart(again, adapted) + differ(again, adapt(deeper(NAMES)))


def subclass():
    """A class that is derived from the clippable one."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ClippableLinear

    kind = type("Mine", (Gemma4ClippableLinear,), {})
    return apart(adapt(list(NAMES), base=model(kind)), adapt(deeper(NAMES), base=model(kind)))


def mixed():
    """A model of mixed kinds of adapters."""
    import peft

    made = []
    for targets in (["q_proj"], deeper(["q_proj"])):
        torch.manual_seed(1)
        made.append(peft.get_peft_model(model(), config(targets), mixed=True))
    return apart(*made)


def ways():
    """Yield the name of each way and the function that goes it."""
    vision = r".*vision_tower.*\.(q_proj|o_proj)"
    for name, way in {
        "names target": partial(targeted, list(NAMES), NAMES),
        "a regular expression as target": lambda: apart(adapt(vision), adapt(vision + r"\.linear")),
        "all-linear as target": lambda: float(not any(".linear.lora_A" in n for n in adapt("all-linear").state_dict())),
        "a whole name as target": lambda: apart(adapt([ONE]), adapt([ONE + ".linear"])),
        "targeted with the layer inside": named_twice,
        "excluded": excluded,
        "trains as by the names inside": lambda: differ(adapt(list(NAMES)), adapt(deeper(NAMES))),
        "clips": clipped,
        "saved and loaded": saved,
        "saved and loaded by transformers": by_transformers,
        "saved and loaded, low_cpu_mem_usage": partial(saved, low_cpu_mem_usage=True),
        "merge_and_unload": merged,
        "unload": partial(without, "unload"),
        "disable_adapter": partial(without, "disable_adapter"),
        "DoRA": partial(targeted, list(NAMES), NAMES, use_dora=True),
        "DoRA, merge_and_unload": partial(merged, use_dora=True),
        "PiSSA": partial(targeted, list(NAMES), NAMES, init_lora_weights="pissa"),
        "a second adapter": second,
        "patterns of ranks and scales": patterns,
        "adapters of the text alone": text_only,
        "a user's own layer": own_layer,
        "other kinds of adapters": other_kinds,
        "mixed kinds of adapters": mixed,
        "deepcopy": partial(copied, copy.deepcopy),
        "pickle": partial(copied, lambda adapted: pickle.loads(pickle.dumps(adapted))),
        "subclass": subclass,
    }.items():
        yield name, partial(quietly, way)


def quietly(way):
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return way()
        except ValueError as error:
            # The defect itself is no limit of the release.
            if "Gemma4ClippableLinear" in str(error):
                return 1.0
            raise
