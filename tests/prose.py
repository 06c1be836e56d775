"""What tests ask of texts: numbers of sentences, and no address that a page would fetch."""

import re

MOST_SENTENCES = 4  # of the answer to a question or an exercise
REMOTE = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)\s*=\s*["']?(?:https?:)?//"""
    r"""|\bimport\s*\(?\s*["']https?:|url\(\s*["']?https?:""",
    re.IGNORECASE,
)  # what a browser would fetch from a network


def count_sentences(text: str) -> int:
    """The number of sentences in a text; decimal points and file names end none."""
    return len(re.findall(r"""[.!?](?=[*_)"'`]*(?:\s|$))""", text.strip()))
