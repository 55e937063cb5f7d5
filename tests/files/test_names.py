import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import NameNotAllowedError
from luthier.files.names import check_name, is_inside, resolve_inside

HOSTILE = [
    "", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "//host/share", "a//b", "a/", "./a",
    "~/x", "a\\b", "..\\..\\x", "C:\\x", "a\0b", "a\nb", "\x7f", "%2e%2e/x", "a%00", "x" * 10_240,
    "．．/x", "а", "con", "NUL.txt", "com1", "a.", "a..", ".hidden", "-flag", "a b", "a:b",  # noqa: RUF001
    "package:os", "http://x/y", "a/b/c/d/e", None, 7, b"bytes", ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:30])
def test_a_hostile_name_is_refused_with_a_short_message(name):
    with pytest.raises(NameNotAllowedError) as failure:
        check_name(name, what="base model")
    assert "base model" in str(failure.value)
    assert len(str(failure.value)) < 400
    assert failure.value.code == "name_not_allowed"


@pytest.mark.parametrize(
    "name", ["a", "tiny-causal", "org/name", "SmolLM2-135M.v1_x", "_x", "a..b"]
)
def test_an_ordinary_name_is_given_back(name):
    assert check_name(name) == name


def test_a_plain_name_may_have_no_slash():
    with pytest.raises(NameNotAllowedError, match="at most 1"):
        check_name("a/b", max_parts=1)


@given(st.text(max_size=40))
def test_whatever_passes_stays_below_its_root(name):
    try:
        check_name(name)
    except NameNotAllowedError:
        return
    assert not name.startswith("/")
    assert ".." not in name.split("/")
    assert name.isascii() and name.isprintable()


def test_a_link_out_of_the_root_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "inner").mkdir()
    (root / "ok").symlink_to(root / "inner")
    with pytest.raises(NameNotAllowedError, match="leads out"):
        resolve_inside(root, "link")
    with pytest.raises(NameNotAllowedError, match="leads out"):
        resolve_inside(root, "link/file")
    assert resolve_inside(root, "ok") == (root / "inner").resolve()


def test_a_sibling_that_shares_a_prefix_is_not_inside(tmp_path):
    assert not is_inside(tmp_path / "models-secret", tmp_path / "models")
    assert is_inside(tmp_path / "models" / "a", tmp_path / "models")
