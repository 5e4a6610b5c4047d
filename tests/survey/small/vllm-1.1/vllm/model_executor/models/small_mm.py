"""A model with one constant; parsed and never imported."""

import torch
from torch import nn


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.register_buffer("normalizer", torch.tensor(config.hidden_size**0.5))
