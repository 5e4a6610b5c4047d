"""The same model as transformers has it; parsed and never imported."""

import torch
from torch import nn


class SmallEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Buffer(torch.zeros(4))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("normalizer", torch.ones(1), persistent=False)
