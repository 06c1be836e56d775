"""What tests ask of texts: numbers of sentences."""

import re

MOST_SENTENCES = 4  # of the answer to a question or an exercise


def count_sentences(text: str) -> int:
    """The number of sentences in a text; decimal points and file names end none."""
    return len(re.findall(r"""[.!?](?=[*_)"'`]*(?:\s|$))""", text.strip()))
