"""Rows of text: foreign text in them is shown, and neither obeyed nor taken for markup."""

import pytest

from sasrec.core.tables import markdown_text, plain_table, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 映画 \t\n", "plain é 映画 \t\n"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b31m \x7f \r over", "\\x9b31m \\x7f \\r over"),
        ("abc\u202egnp", "abc\\u202egnp"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_cells_of_a_table_are_one_harmless_line_each() -> None:
    assert plain_table([["item", "title"], ["a\nb", "\x1b[2J"]]) == "item  title\na\\nb  \\x1b[2J"


def test_text_in_markdown_is_no_markup() -> None:
    assert markdown_text("a | b\n<img> [x](y) `c` \x1b") == "a \\| b \\<img\\> \\[x\\](y) \\`c\\` \\\\x1b"
    assert markdown_text("paper, embedding_dim=8") == "paper, embedding_dim=8"
