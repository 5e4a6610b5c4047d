"""A plugin of vLLM that plants a defect of 0.9.1 in a newer release; `vllm_refit.py` installs it where it is wanted."""


def plant():
    """Make the normalizer of Gemma 3 a persistent buffer, which a dummy load fills."""
    from vllm.model_executor.models.gemma3 import Gemma3Model

    if getattr(Gemma3Model, "planted", False):
        return
    init = Gemma3Model.__init__

    def init_as_before(self, **kwargs):
        init(self, **kwargs)
        self._non_persistent_buffers_set.discard("normalizer")

    Gemma3Model.__init__ = init_as_before
    Gemma3Model.planted = True
