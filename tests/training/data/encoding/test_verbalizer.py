"""Templates: one pass, clear refusals."""

import pytest

from luthier.errors import InvalidInputError, VerbalizerError
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER, Verbalizer


def test_placeholders_are_filled_wherever_they_stand() -> None:
    verbalizer = Verbalizer("{{a}} and {{b_2}} and {{a}}!")
    assert verbalizer.render({"a": "x", "b_2": "y", "c": "z"}) == "x and y and x!"
    assert verbalizer.fields == ("a", "b_2")


def test_the_default_is_the_input_itself() -> None:
    assert Verbalizer(DEFAULT_VERBALIZER).render({"input": "hello", "output": "no"}) == "hello"


@pytest.mark.parametrize("text", ["{{output}}", "{{input}}", "{{{{input}}}}", r"\g<1> \1"])
def test_braces_and_escapes_inside_a_record_stay_text(text: str) -> None:
    rendered = Verbalizer("say: {{input}}.").render({"input": text, "output": "secret"})
    assert rendered == f"say: {text}."


@pytest.mark.parametrize("template", ["", "input", "{input}", "{{ input }}", "{{in put}}", "{{}}"])
def test_a_template_without_placeholder_is_refused(template: str) -> None:
    with pytest.raises(VerbalizerError, match="no renderable placeholders"):
        Verbalizer(template)


@pytest.mark.parametrize("template", [None, 3, ["{{input}}"], b"{{input}}"])
def test_what_is_no_text_is_refused(template: object) -> None:
    with pytest.raises(VerbalizerError, match="is an invalid type"):
        Verbalizer(template)  # type: ignore[arg-type]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'verbalizer' is no valid text: .* character 10"):
        Verbalizer("{{input}} \ud83d")


def test_a_missing_field_is_named_with_its_row() -> None:
    with pytest.raises(VerbalizerError, match=r"row 7: .*{{text}}.*missing.*can name: input"):
        Verbalizer("{{text}}").render({"input": "a", "output": "b"}, row=7)


def test_a_field_that_is_none_counts_as_missing() -> None:
    with pytest.raises(VerbalizerError, match=r"{{input}}, which is missing"):
        Verbalizer("{{input}}").render({"input": None})


def test_a_field_that_is_no_text_is_refused() -> None:
    with pytest.raises(VerbalizerError, match="of type int"):
        Verbalizer("{{input}}").render({"input": 3})


def test_a_template_that_shows_the_label_cannot_train() -> None:
    with pytest.raises(VerbalizerError, match=r"names {{output}}"):
        Verbalizer("{{input}} {{output}}").require_trainable()
    Verbalizer("{{input}}").require_trainable()


def test_a_long_template_is_not_quoted_whole() -> None:
    with pytest.raises(VerbalizerError) as caught:
        Verbalizer("x" * 10_000)
    assert len(str(caught.value)) < 300
