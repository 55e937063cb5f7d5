"""Templates and markers: the parts joined are the text, and answers are found exactly."""

import pytest
from fixtures.tiny_models import make_tokenizer

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import InvalidInputError, TrainingDataError
from luthier.training.data.encoding.conversation_parts import (
    MarkerParts,
    Part,
    TemplateParts,
    choose_parts,
)

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "<s>[INST] {{ message['content'] | trim }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] | trim }} </s>"
    "{% else %}{{ raise_exception('no system please') }}{% endif %}{% endfor %}"
)
TWO = ChatTrainRecord(
    (
        ChatMessage("user", "  Hi "),
        ChatMessage("assistant", " Hello\n"),
        ChatMessage("user", "Bye"),
        ChatMessage("assistant", "Ciao", is_learned=False),
    )
)


def _template(text: str, *ends: str, adds_end: bool = True) -> TemplateParts:
    return TemplateParts(make_tokenizer(), text, ends, adds_end=adds_end)


def _text(parts: list[Part]) -> str:
    return "".join("".join(piece.text for piece in part.pieces) + part.end for part in parts)


def _answers(parts: list[Part]) -> list[tuple[str, str, bool]]:
    return [
        (part.pieces[0].text, part.end, part.is_learned) for part in parts if part.kind == "answer"
    ]


def test_chatml_keeps_every_blank_and_ends_each_answer() -> None:
    parts = _template(CHATML, "</s>", "<|im_end|>")(TWO, "row")
    assert _answers(parts) == [(" Hello\n", "<|im_end|>", True), ("Ciao", "<|im_end|>", False)]
    assert _text(parts) == (
        "<|im_start|>system\nYou are kind<|im_end|>\n<|im_start|>user\n  Hi <|im_end|>\n"
        "<|im_start|>assistant\n Hello\n<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\nCiao<|im_end|>"
    )


def test_a_template_that_trims_is_understood() -> None:
    parts = _template(LLAMA2, "</s>")(TWO, "row")
    assert _answers(parts) == [("Hello", " </s>", True), ("Ciao", " </s>", False)]
    assert _text(parts) == "<s>[INST] Hi [/INST] Hello </s><s>[INST] Bye [/INST] Ciao </s>"


def test_only_what_a_message_says_is_data() -> None:
    parts = _template(CHATML, "<|im_end|>")(TWO, "row")
    said = [piece.text for part in parts for piece in part.pieces if piece.is_data]
    assert said == ["  Hi ", " Hello\n", "Bye", "Ciao"]


def test_a_last_answer_that_the_template_does_not_end_is_ended() -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    parts = _template(template, "</s>")(TWO, "row")
    assert _answers(parts) == [(" Hello\n", "", True), ("Ciao", "</s>", False)]
    open_ended = _template(template, "</s>", adds_end=False)(TWO, "row")
    assert _answers(open_ended)[-1] == ("Ciao", "", False)


def test_messages_with_the_marks_own_characters_are_understood() -> None:
    text = "\U000f0000 and \U00100000"
    odd = ChatTrainRecord((ChatMessage("user", text), ChatMessage("assistant", "\U000f0001")))
    parts = _template(CHATML, "<|im_end|>")(odd, "row")
    assert text in _text(parts)
    assert _answers(parts) == [("\U000f0001", "<|im_end|>", True)]
    every = "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))))
    hopeless = ChatTrainRecord((ChatMessage("user", every), ChatMessage("assistant", "a")))
    with pytest.raises(TrainingDataError, match="uses up the characters for private use"):
        _template(CHATML, "<|im_end|>")(hopeless, "row")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[-1]['content'] }}", r"leaves out message 1 \(user\)"),
        (
            "{% for m in messages + messages %}{{ m['content'] }}{% endfor %}",
            r"repeats message 1 \(user\)",
        ),
        ("{% for m in messages %}{{ m['content'][1:] }}{% endfor %}", "changes what a message"),
        (
            "{% for m in messages %}{{ m['content'] | length }}{% endfor %}",
            "changes what a message",
        ),
        ("{{ raise_exception('roles must alternate') }}", "refuses.*roles must alternate"),
        ("{{ messages[99]['content'] }}", "refuses the conversation"),
        ("{% for %}", "refuses the conversation"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "refuses the conversation"),
        ("{{ 1 / 0 }}", "refuses the conversation"),
    ],
)
def test_a_template_that_hides_the_answers_is_refused_by_row(template: str, message: str) -> None:
    with pytest.raises(TrainingDataError, match=f"^row: .*{message}"):
        _template(template, "</s>")(TWO, "row")


def test_markers_stand_where_h2o_puts_them() -> None:
    record = ChatTrainRecord((ChatMessage("system", "Be kind"), *TWO.messages[2:]))
    parts = MarkerParts(DatasetOptions(), "</s>")(record, "row")
    assert _text(parts) == "<|system|>Be kind</s><|prompt|>Bye</s><|answer|>Ciao</s>"
    assert [part.kind for part in parts] == ["system", "prompt", "answer"]
    bare = DatasetOptions(
        text_system_start="S:",
        text_prompt_start="P:",
        text_answer_separator="A:",
        add_eos_token_to_system=False,
        add_eos_token_to_prompt=False,
        add_eos_token_to_answer=False,
    )
    assert _text(MarkerParts(bare, "</s>")(record, "row")) == "S:Be kindP:ByeA:Ciao"


def test_there_is_no_marker_for_tools() -> None:
    record = ChatTrainRecord((ChatMessage("tool", "x"), ChatMessage("assistant", "y")))
    with pytest.raises(TrainingDataError, match="row: there is no marker for the role 'tool'"):
        MarkerParts(DatasetOptions(), "</s>")(record, "row")


def test_the_way_is_chosen_by_options_and_base_model() -> None:
    bare, own = make_tokenizer(), make_tokenizer()
    own.chat_template = CHATML
    ends = ("</s>",)
    assert isinstance(choose_parts(bare, DatasetOptions(), ends), MarkerParts)
    assert isinstance(choose_parts(own, DatasetOptions(), ends), TemplateParts)
    given = DatasetOptions(chat_template=CHATML)
    assert isinstance(choose_parts(bare, given, ends), TemplateParts)
    markers = DatasetOptions(prompt_format="markers")
    assert isinstance(choose_parts(own, markers, ends), MarkerParts)
    with pytest.raises(InvalidInputError, match="the base model has none"):
        choose_parts(bare, DatasetOptions(prompt_format="chat_template"), ends)
    with pytest.raises(InvalidInputError, match="verbalizer"):
        choose_parts(own, DatasetOptions(prompt_format="verbalizer"), ends)
