"""What a judge is asked, and how its answer is read."""

import pytest

from luthier.data_model.judge_prompt import (
    JUDGE_TEMPLATES,
    judge_template,
    read_score,
    render_judge_prompt,
)
from luthier.errors import InvalidInputError


def test_our_own_template_shows_all_three_texts_once():
    text = render_judge_prompt(
        judge_template("general"), prompt="{{answer}}", reference="R-7", answer="A-7"
    )
    assert "[Prompt]\n{{answer}}\n" in text
    assert text.count("R-7") == 1 and text.count("A-7") == 1


def test_a_template_of_ones_own_must_show_the_answer_and_nothing_unknown():
    assert judge_template("Good? {{answer}}") == "Good? {{answer}}"
    for given in ("Good?", "{{prompt}}", "{{answer}} {{other}}", "rag"):
        with pytest.raises(InvalidInputError, match="'judge_template' must be one of general"):
            judge_template(given)


@pytest.mark.parametrize("template", JUDGE_TEMPLATES)
def test_our_words_are_templates(template):
    assert judge_template(template) == judge_template(judge_template(template))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("SCORE: 0.5", 0.5),
        ("First SCORE: 0.1, on second thought\nScore : 1", 1.0),
        ("score:0", 0.0),
        ("It is good.", None),
        ("SCORE: 7", None),
        ("SCORE: -1", None),
        ("", None),
    ],
)
def test_the_last_score_in_range_counts(text, score):
    assert read_score(text) == score
