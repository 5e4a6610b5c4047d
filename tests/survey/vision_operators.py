"""Declare three operators of torchvision, whose wheel is built for CUDA: it can be imported then. A pytest plugin."""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
"""They live as long as it."""

for _name, _rest in (
    ("nms", "Tensor scores, float iou_threshold"),
    ("qnms", "Tensor scores, float iou_threshold"),
    ("roi_align", "Tensor rois, float spatial_scale, int height, int width, int sampling_ratio, bool aligned"),
):
    LIBRARY.define(f"{_name}(Tensor input, {_rest}) -> Tensor")
