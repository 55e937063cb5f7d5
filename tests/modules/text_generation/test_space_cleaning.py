"""Spaces go where transformers' clean-up takes them, however the text is cut."""

from fixtures.tiny_models import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from luthier.modules.text_generation.space_cleaning import SpaceCleaner, clean_up_spaces

PIECES = st.lists(
    st.one_of(
        st.sampled_from([" ", ".", ",", "'", " '", "n't", " n", "t", "s", "'re", "ve", "m", "a"]),
        st.text(max_size=4),
    ),
    max_size=25,
)


@given(PIECES)
def test_the_whole_text_is_what_transformers_makes_of_it(pieces):
    text = "".join(pieces)
    assert clean_up_spaces(text) == make_tokenizer_once().clean_up_tokenization(text)


@given(PIECES)
def test_pieces_join_to_the_whole_text(pieces):
    cleaner = SpaceCleaner(is_active=True)
    joined = "".join(cleaner.push(piece) for piece in pieces) + cleaner.flush()
    assert joined == clean_up_spaces("".join(pieces))


@given(PIECES)
def test_an_inactive_cleaner_holds_nothing_back(pieces):
    cleaner = SpaceCleaner(is_active=False)
    assert [cleaner.push(piece) for piece in pieces] == pieces
    assert cleaner.flush() == ""


_TOKENIZER = []


def make_tokenizer_once():
    if not _TOKENIZER:
        _TOKENIZER.append(make_tokenizer())
    return _TOKENIZER[0]
