"""A model with a tensor of each kind; parsed and never imported."""

import torch
from torch import nn
from transformers import SmallEncoder


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4))
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("normalizer", torch.tensor(config.hidden_size**0.5))
        self.register_buffer("ids", torch.arange(4))
        self.register_buffer("rope", torch.ones(4), persistent=False)
        self.register_buffer("absent", None)
        self.clamp = nn.Buffer(torch.tensor(1.0))
        self.scratch = nn.Buffer(torch.zeros(4), persistent=False)
        self.norm = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
        self.positions = nn.Embedding(4, 4)
        self.positions.weight.data.copy_(torch.arange(16.0).view(4, 4))
        self.encoder = SmallEncoder._from_config(config)
        self._init_table()

    def _init_table(self):
        self.register_buffer("table", torch.zeros(4))

    def forward(self, pixels):
        self.later = nn.Parameter(torch.ones(4))
        return pixels

    def load_weights(self, weights):
        for name, weight in weights:
            if "tower.clamp" in name:
                continue
            yield name, weight
