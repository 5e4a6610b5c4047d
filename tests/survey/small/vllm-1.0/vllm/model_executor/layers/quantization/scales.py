"""Scales of quantisation, which the walk leaves out; parsed and never imported."""

import torch
from torch import nn


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))
