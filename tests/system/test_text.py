"""Text of others in one line."""

import pytest

from utils.system.text import few_names, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("left kidney", "left kidney"),
        ("  left\r\n\tkidney ", "left kidney"),
        ("a\0b\x07\x1b[31mc\x9bd", "a b [31mc d"),
        ("a\u2028b\u2029c\x85d\u00a0e", "a b c d e"),
        ("\u202eabc\u2066d\u2069", "abc d"),  # what turns the direction of a line
        ("m\udcff\ud800", "m\\udcff\\ud800"),
        ("شعب ☃ µm", "شعب ☃ µm"),
        ("\n\t", ""),
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_long_lists_of_names_are_cut() -> None:
    assert few_names(["a"]) == "a"
    assert few_names(["a", "b", "c"]) == "a, b and c"
    assert few_names(list("abcde")) == "a, b, c, d and e"
    assert few_names(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_names_in_a_sentence_are_single_lines_of_a_length_that_can_be_read() -> None:
    assert few_names(["a\nb", "x" * 400]) == f"a b and {'x' * 150}…{'x' * 150}"
