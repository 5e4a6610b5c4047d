"""Checkpoints that are damaged in one tensor."""

import json

from safetensors.torch import load_file, save_file

DAMAGES = {
    "lacks a tensor": lambda tensors, name: tensors.pop(name),
    "has a tensor more": lambda tensors, name: tensors.update({f"{name}_too": tensors[name].clone()}),
    "names a tensor otherwise": lambda tensors, name: tensors.update({f"{name}_too": tensors.pop(name)}),
    "has a tensor of another shape": lambda tensors, name: tensors.update({name: tensors[name][:1].clone()}),
}


def damaged(folder, out, damage, part):
    """Copy a checkpoint or an adapter, damage the first tensor whose name has that part in it; return the copy."""
    out.mkdir()
    files = {file: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    name = min(name for tensors in files.values() for name in tensors if part in name)
    for file, tensors in files.items():
        if name in tensors:
            DAMAGES[damage](tensors, name)
        save_file(tensors, out / file.name, {"format": "pt"})
    for file in folder.glob("*.json"):
        if not file.name.endswith("index.json"):
            (out / file.name).write_text(file.read_text())
    if len(files) > 1:
        where = {name: file.name for file, tensors in files.items() for name in tensors}
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return out
