"""What both modules have in common."""

import pytest

from luthier.errors import UnknownKeyError
from luthier.modules import PeftPromptTuning, TextGeneration
from luthier.modules.saving.history import NO_HISTORY


def test_a_module_shows_its_parts(tuned):
    assert tuned.base_model.name.startswith("tiny-")
    assert tuned.adapter.method == "prompt_tuning"
    assert tuned.verbalizer == "Text: {{input}} Label: "
    assert tuned.training_logs == tuned.history.lines != ()


def test_a_bare_base_model_has_no_adapter_and_no_history(here):
    model = TextGeneration.bootstrap("tiny-causal")
    assert model.adapter is None
    assert model.history is NO_HISTORY
    assert model.verbalizer == "{{input}}"
    model.release()


async def test_unknown_parameters_are_refused_on_the_event_loop_too(tuned):
    with pytest.raises(UnknownKeyError, match="did you mean 'top_p'"):
        await tuned.arun("hello", top_q=1)
    with pytest.raises(UnknownKeyError, match="did you mean 'top_p'"):
        tuned.arun_stream_out("hello", top_q=1)


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
def test_a_folder_is_named_by_text_or_path(tuned, tmp_path, kind):
    tuned.save(kind(tmp_path / "model"))
    model = PeftPromptTuning.load(kind(tmp_path / "model"))
    assert model.adapter.content_hash() == tuned.adapter.content_hash()
    model.release()
