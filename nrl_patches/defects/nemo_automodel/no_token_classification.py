"""nemo-automodel has no `NeMoAutoModelForTokenClassification` before 0.5.0, the class of value models.

Problem: none of behaviour. Automodel wraps five of transformers' auto classes, and this one only from 0.5.0 on.
Hit by: critics and reward models per token, such as NeMo RL's `reward_model_type="regression"`, on nemo-automodel up to
    0.4.0 and on the commit that NeMo RL pins: ImportError.
Advice: derive the class from `_BaseNeMoAutoModelClass` and `transformers.AutoModelForTokenClassification`, which is all
    that upstream's own does.
Remove when: no supported release is older than nemo-automodel 0.5.0.

There is no patch because it would break its first user: NeMo RL (issue 2948) has that class itself, and raises as soon
as Automodel exports one.
"""

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected="nemo-automodel<0.5.0",
    upstream=(
        "https://github.com/NVIDIA-NeMo/Automodel/pull/1634",
        "https://github.com/NVIDIA-NeMo/RL/issues/2948",
    ),
    advice="Derive it from _BaseNeMoAutoModelClass and AutoModelForTokenClassification; delete that with 0.5.0.",
)


@defect.probe
def class_is_missing() -> Observation:
    """Look for the class among what the package exports."""
    import nemo_automodel

    return Observation(
        not hasattr(nemo_automodel, "NeMoAutoModelForTokenClassification"),
        {"sequence_classification": hasattr(nemo_automodel, "NeMoAutoModelForSequenceClassification")},
    )
