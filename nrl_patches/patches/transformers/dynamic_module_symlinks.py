"""Code of a model that is loaded from a snapshot of the hub's cache is looked for among the blobs.

Problem: `_compute_local_source_files_hash` (dynamic_module_utils.py) resolves the path of the module before it looks
    for the files that this imports. In the hub's cache a snapshot consists of symbolic links to blobs without names.
Hit by: `trust_remote_code=True` with the path of a snapshot, for models of several files: `FileNotFoundError` of
    `blobs/….py`.
Fix: of the path only the folder is resolved; the hash, and the folder of copied modules that it names, are those of the
    same files without links.
Remove when: no supported release is older than transformers 5.13.0.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import remote_code
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.10.1,<5.13.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/46618",
        "https://github.com/huggingface/transformers/issues/46617",
    ),
    opt_out="NRL_DISABLE_DYNAMIC_MODULE_SYMLINKS_PATCH",
)

patch.rewrite(
    "transformers.dynamic_module_utils:_compute_local_source_files_hash",
    Edit(
        old="resolved_module_file = Path(resolved_module_file).resolve()",
        new="resolved_module_file = Path(resolved_module_file).parent.resolve() / Path(resolved_module_file).name",
    ),
    Edit(
        old="source_file_path = Path(source_file).resolve()",
        new="source_file_path = Path(source_file).parent.resolve() / Path(source_file).name",
    ),
)


@patch.probe
def snapshot_is_not_loaded() -> Observation:
    """Copy the code of a tiny model from a snapshot, as `from_pretrained` does before it runs it."""
    from transformers import dynamic_module_utils

    with quiet(), TemporaryDirectory() as folder, remote_code.modules_in(Path(folder, "modules")):
        try:
            copied = dynamic_module_utils.get_cached_module_file(
                remote_code.snapshot(Path(folder, "hub")), f"{remote_code.MODULE}.py"
            )
        except FileNotFoundError as error:
            return Observation(True, {"FileNotFoundError": Path(str(error.filename)).name})
        return Observation(False, {"copied": Path(copied).name})
