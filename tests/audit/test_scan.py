"""Workarounds in a source tree, found without executing any of it."""

import pytest

from nrl_patches.audit.scan import scan
from nrl_patches.engine.registry import load

PATCHES = list(load())
LOOKUP = "transformers.conversion_mapping.get_checkpoint_conversion_mapping"


@pytest.fixture
def found(tmp_path):
    def scanned(source, name="code.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        places, problems = scan(tmp_path, PATCHES)
        assert not problems
        return [(place.kind, place.line, place.ids) for place in places]

    return scanned


@pytest.mark.parametrize(
    "source",
    [
        "import transformers.conversion_mapping\ntransformers.conversion_mapping.get_checkpoint_conversion_mapping = f",
        "from transformers import conversion_mapping as cm\ncm.get_checkpoint_conversion_mapping = f",
        "from transformers import conversion_mapping as cm\nsetattr(cm, 'get_checkpoint_conversion_mapping', f)",
        f"from unittest import mock\nmock.patch('{LOOKUP}', f)",
        "from transformers import conversion_mapping as cm\nmock.patch.object(cm, 'get_checkpoint_conversion_mapping')",
        f"import wrapt\nwrapt.wrap_function_wrapper('{LOOKUP.rpartition('.')[0]}', '{LOOKUP.rpartition('.')[2]}', f)",
    ],
)
def test_whoever_replaces_a_target_is_found(found, source):
    kind, line, ids = found(source)[0]
    assert (kind, line) == ("replaces a target", 2)
    assert "transformers.qwen_vl_checkpoint_mapping" in ids
    assert "transformers.qwen_vl_base_model_visual" in ids


def test_a_method_of_a_class_that_was_imported_by_its_name(found):
    source = "from nemo_automodel._transformers import model_init\nmodel_init._restore_loaded_model_dtype = f"
    assert found(source) == [("replaces a target", 2, ("nemo_automodel.dtype_restore",))]
    source = "from vllm.model_executor.models.radio import RadioModel\nRadioModel.load_weights = f"
    assert found(source) == [("replaces a target", 2, ("vllm.radio_layer_scale",))]


def test_a_file_that_is_rewritten_on_disk(found):
    source = "import vllm, os\npath = os.path.join(os.path.dirname(vllm.__file__), 'model_executor/models/radio.py')"
    assert found(source) == [("rewrites a file", 2, ("vllm.radio_layer_scale",))]


@pytest.mark.parametrize(
    "source",
    ["engine = LLM(load_format='auto')", "options = {'load_format': 'auto'}", "options['load_format'] = 'auto'"],
)
def test_who_forces_the_load_format(found, source):
    ids = ("vllm.dummy_load_constants", "vllm.dummy_load_constants_before_load_weights")
    assert found(source) == [("load_format", 1, ids)]


@pytest.mark.parametrize(
    "source",
    [
        "import transformers\nassert transformers.__version__ < '5.9.0'",
        "from importlib import metadata\nif metadata.version('transformers') >= '5.9.0': pass",
        "import importlib.metadata\nOLD = '0.9.2' > importlib.metadata.version('vllm')",
        "x = (\n'5.23.0' < '5.9.0')",
    ],
)
def test_versions_that_are_compared_as_strings(found, source):
    assert found(source) == [("version as string", 2, ())]


@pytest.mark.parametrize(
    "source",
    [
        "import vllm\nfrom packaging.version import Version\nOLD = Version(vllm.__version__) < Version('5.9.0')",
        "if name < '5.9.0': pass",
        "cm = object()\ncm.get_checkpoint_conversion_mapping = 1",
        "LOAD = 'auto'\nengine = LLM(load_format='dummy')",
        "from mine import conversion_mapping\nconversion_mapping.get_checkpoint_conversion_mapping = f",
    ],
)
def test_what_is_no_workaround_is_left_alone(found, source):
    assert found(source) == []


def test_the_advice_says_from_when_on_it_is_needless_or_that_it_is_not(tmp_path):
    (tmp_path / "code.py").write_text(
        "from nemo_automodel._transformers import model_init\nmodel_init._restore_loaded_model_dtype = f\n"
        "from vllm.model_executor.models.radio import RadioModel\nRadioModel.load_weights = f\n"
    )
    (first, second), _ = scan(tmp_path, PATCHES)
    assert first.advice.startswith(
        "needless from nemo-automodel 0.5.0 on; where nemo_automodel.dtype_restore is applied"
    )
    assert second.advice.startswith("still needed in the newest measured (vllm>=0.11.0,<=")


def test_nothing_is_executed_and_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "a.py").write_text("raise SystemExit('executed')\n")
    (tmp_path / "b.py").write_text("def (:\n")
    (tmp_path / "c.py").write_bytes(b"\xff\xfe")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "d.py").write_text("def (:\n")
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "env" / "e.py").write_text("def (:\n")
    places, problems = scan(tmp_path, PATCHES)
    assert places == []
    assert [problem.partition(" ")[0] for problem in problems] == ["b.py", "c.py"]


def test_a_single_file_and_none():
    assert scan(__import__("pathlib").Path(__file__), PATCHES)[1] == []
    with pytest.raises(ValueError, match="no such file or folder"):
        scan(__import__("pathlib").Path("nowhere"), PATCHES)
