"""The page is read back with a parser: what a browser would see, not what the strings look like."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import StageError
from datapipe.report.facts import Example, RowCounts, StratumExamples, facts_from_json, facts_to_json
from datapipe.report.page import build_report
from tests.report.sample import make_facts

VOID = {"br", "col", "hr", "input", "link", "meta", "wbr"}
HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & {{ }} \u202e\x00"


class Page(HTMLParser):
    """Elements with their attributes in order, the visible text, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} says an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text.append(data)

    @property
    def tags(self) -> list[str]:
        return [name for name, _ in self.elements if name != "wbr"]


def test_the_headline_says_how_many_rows_were_kept() -> None:
    text = "".join(Page(build_report(make_facts())).text)
    assert "90 of 306 rows kept (29.4 %)" in text


def test_equal_facts_give_equal_bytes_whatever_the_order_of_their_mappings() -> None:
    facts = make_facts()
    turned = replace(
        facts,
        counts=replace(facts.counts, dropped=dict(reversed(list(facts.counts.dropped.items())))),
        identity=replace(
            facts.identity,
            versions=dict(reversed(list(facts.identity.versions.items()))),
            config=dict(reversed(list(facts.identity.config.items()))),
        ),
        examples=tuple(reversed(facts.examples)),
        strata=tuple(reversed(facts.strata)),
    )
    assert turned.counts == facts.counts
    assert build_report(turned) == build_report(facts)


def test_facts_survive_json_and_give_the_same_page() -> None:
    facts = make_facts("naïve “quotes” \u2028 <b>")
    again = facts_from_json(facts_to_json(facts))
    assert again == facts
    assert build_report(again) == build_report(facts)


def test_every_element_is_closed_and_every_id_is_unique() -> None:
    page = Page(build_report(make_facts()))
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, times in ids.items() if times > 1] == []
    targets = [attributes["href"] for name, attributes in page.elements if name in {"a", "use"}]
    assert {str(target)[1:] for target in targets} <= set(ids)


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = build_report(make_facts())
    for name, attributes in Page(page).elements:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith("#") or value == "data:,", (name, key, value)
    styles = resources.files("datapipe.report").joinpath("page.css").read_text(encoding="utf-8")
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [attributes["content"] for _, attributes in Page(page).elements if "http-equiv" in attributes]
    assert [str(policy).startswith("default-src 'none'; ") for policy in policies] == [True]


def test_hostile_text_stays_text() -> None:
    benign, hostile = Page(build_report(make_facts("a"))), Page(build_report(make_facts(HOSTILE)))
    assert hostile.tags == benign.tags
    assert not [key for _, attributes in hostile.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in "".join(hostile.text)


@given(text=st.text(max_size=80))
def test_no_text_whatever_changes_the_elements_of_the_page(text: str) -> None:
    page = build_report(make_facts(text))
    assert Page(page).tags == Page(build_report(make_facts("a"))).tags
    page.encode("utf-8")


def test_long_texts_are_cut_between_words() -> None:
    row = Example(row_id="00", text="word " * 200, score=None)
    facts = replace(make_facts(), examples=(StratumExamples(stratum="How do I change my PIN? 0", kept=(row,)),))
    shown = "".join(Page(build_report(facts)).text)
    assert "word word\u2026" in shown
    assert "word " * 60 not in shown


def test_many_strata_are_capped_and_the_page_says_so() -> None:
    text = "".join(Page(build_report(make_facts(strata=260))).text)
    assert "and 60 more strata" in text
    assert "180 more strata" in text
    assert "20 smaller strata are not drawn" in text


@pytest.mark.parametrize("strata", [1, 2, 77])
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_few_or_many_strata_make_a_page(*, strata: int, labels: bool) -> None:
    page = Page(build_report(make_facts(strata=strata, labels=labels)))
    text = "".join(page.text)
    assert page.open == []
    assert ("no class balance to show" in text) is not labels
    assert ("The choice was made in one stratum" in text) is (strata == 1)


def test_a_run_of_nothing_but_counts_makes_a_page() -> None:
    facts = make_facts()
    bare = replace(
        facts,
        counts=RowCounts(rows_in=0, kept=0),
        scores=None,
        strata=(),
        balance=None,
        map=None,
        matches=(),
        examples=(),
        strategy=replace(facts.strategy, why=(), warnings=()),
    )
    text = "".join(Page(build_report(bare)).text)
    assert "0 of 0 rows kept (\u2013)" in text


def test_a_map_of_equal_points_and_a_histogram_of_one_bin_make_a_page() -> None:
    facts = make_facts()
    assert facts.map is not None
    assert facts.scores is not None
    points = tuple(point._replace(x=1.0, y=1.0, score=None) for point in facts.map.points)
    scores = replace(facts.scores, edges=(0.0, 1e-9), kept=(1,), dropped=(0,), cuts=())
    strata = tuple(replace(stratum, scores=None) for stratum in facts.strata)
    page = build_report(replace(facts, map=replace(facts.map, points=points), scores=scores, strata=strata))
    assert "nan" not in page.lower().replace("provenance", "")


def test_plots_have_names_and_tables_have_heads_for_those_who_do_not_see_them() -> None:
    page = Page(build_report(make_facts()))
    for name, attributes in page.elements:
        if name == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if name == "th":
            assert attributes.get("scope") in {"row", "col"}
    headings = [int(name[1]) for name in page.tags if re.fullmatch("h[1-6]", name)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(headings))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_plots_have_enough_contrast(scheme: str) -> None:
    styles = resources.files("datapipe.report").joinpath("page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", styles, flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[{"light": 0, "dark": 1}[scheme]]))
    for name, least in {"ink": 7, "soft": 4.5, "kept-ink": 4.5, "dropped-ink": 4.5, "kept": 3, "dropped": 3}.items():
        assert _contrast(colours[name], colours["paper"]) >= least, name
    assert _contrast(colours["dropped-ink"], colours["warn"]) >= 4.5


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(StageError, match=r"5 rows kept, 4 dropped and 0 rejected make 9, but 10 came in"):
        RowCounts(rows_in=10, kept=5, dropped={"over_budget": 4})


def _contrast(one: str, other: str) -> float:
    """Contrast of WCAG 2.2, 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
