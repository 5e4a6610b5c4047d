"""The late Gated DeltaNet layers of Qwen3.5-35B-A3B have convolution weights of a larger scale than the others.

Problem: `linear_attn.conv1d.weight` of the layers 36, 37 and 38 is said to have a standard deviation of 0.102, 0.102
    and 0.089 in the published checkpoint, where the median of the 30 linear-attention layers is 0.063.
    Axolotl takes it for a drift in pretraining, by AdamW's large steps for rarely chosen experts, and for the reason
    why the model loses the thread of long conversations. Weight decay is not what it names.
Hit by: whoever loads or trains on from Qwen3.5-35B-A3B, with any release. One source says so; neither the numbers nor
    what follows from them has been confirmed elsewhere.
Advice: measure before you repair: compare the standard deviation of each layer's tensor with the median of its kind,
    and judge long generations with and without rescaling.
Remove when: the checkpoint is republished, or the claim is refuted.

Not measured: this is in a checkpoint of some 70 GB, not in the code of a release; there is nothing for a probe. The
range is the releases with Qwen 3.5's code. Axolotl's notes recommend its option `normalize_weight_scales`, which is to
multiply each outlier by median/deviation after loading. Its code was on a branch (commit f608d263 of April 2026) and
was not in the main branch of July 2026, so the option may not exist where you look for it.
"""

from nrl_patches import Defect

defect = Defect(
    __name__,
    affected="transformers>=5.2.0,<=5.24.0",
    upstream=(
        "https://github.com/axolotl-ai-cloud/axolotl/pull/3584",
        "https://github.com/axolotl-ai-cloud/axolotl/blob/main/docs/agents/model_architectures.md",
        "https://github.com/axolotl-ai-cloud/axolotl/commit/f608d263a608ab0f30c40dc23e45220572fffb6d",
    ),
    advice="Compare the scale of linear_attn.conv1d.weight across the layers of Qwen3.5-35B-A3B before training on it.",
    victims={"Qwen3.5-35B-A3B": "transformers>=5.2.0,<=5.24.0"},
    measured=False,
)
