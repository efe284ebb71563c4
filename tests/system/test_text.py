"""Text of others in one line."""

import pytest

from utils.system.text import one_line


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
