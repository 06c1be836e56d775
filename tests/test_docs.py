"""The front page and the documentation: short, linked from one list, and true to the tables."""

import re

import pytest

from lesionlib.engine.files import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST = 6000  # bytes of a page
LINK = re.compile(r"\]\(([^)#:]+)\)")  # a relative link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short_and_its_links_lead_somewhere(page):
    text = page.read_text()
    assert len(text.encode()) <= MOST
    links = LINK.findall(text) + re.findall(r'src="([^"]+)"', text)
    assert all((page.parent / link).exists() for link in links)


def test_one_list_links_every_page_once():
    for folder in (ROOT / "docs", ROOT / "docs" / "settings"):
        listed = LINK.findall((folder / "README.md").read_text())
        pages = {path.name for path in folder.glob("*.md")} - {"README.md"}
        pages |= {f"{path.parent.name}/README.md" for path in folder.glob("*/README.md")}
        assert sorted(listed) == sorted(pages)


def test_every_interval_on_the_front_page_stands_in_the_published_results():
    text = " ".join((ROOT / "README.md").read_text().split())
    quoted = re.findall(r"\S+ \(\S+ to \S+\)", text)
    pages = (ROOT / "figures").glob("overnight*/README.md")
    published = "\n".join(page.read_text() for page in pages)
    assert len(quoted) > 6 and all(one in published for one in quoted)
