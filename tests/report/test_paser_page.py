"""The page of a selection for recovery, read back with a parser."""

from __future__ import annotations

import io
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from rich.console import Console

from datapipe.report.facts import MapFacts, MapPoint, StratumExamples, StratumFacts
from datapipe.report.paser import build_recovery_report
from datapipe.report.paser_facts import CurveFacts, RecoveryFacts, SkillFacts, VariantFacts, skill_name
from datapipe.report.paser_table import print_skills
from tests.report.sample import make_facts
from tests.report.test_page import HOSTILE, Page


def recovery_facts(text: str = "garden", *, skills: int = 3, variants: int = 2) -> RecoveryFacts:
    """Facts in which `text` stands wherever words of the pool can stand."""
    base = make_facts(text, strata=skills)
    found = tuple(
        SkillFacts(
            cluster=place,
            words=(text, f"word{place}"),
            rows=100 + place,
            measured=40,
            damage=0.1 * place,
            low=0.08 * place,
            high=0.15 * place,
            share=1 / skills,
            budget=30,
            taken=30,
            tokens_taken=700,
            acceptance=0.75,
            examples=(text, "another instruction"),
        )
        for place in range(skills)
    )
    names = [skill.name for skill in found]
    points = tuple(
        MapPoint(float(place % 7), float(place % 5), place % 3 == 0, names[place % skills], 0.01 * place)
        for place in range(40)
    )
    run = replace(
        base,
        map=MapFacts(method="UMAP", note="every row", points=points),
        strata=tuple(
            StratumFacts(name=name, total=old.total, kept=old.kept, mean_score=0.2, scores=old.scores)
            for name, old in zip(names, base.strata, strict=True)
        ),
        examples=tuple(
            StratumExamples(stratum=name, kept=old.kept, dropped=old.dropped)
            for name, old in zip(names, base.examples, strict=False)
        ),
    )
    told = tuple(
        VariantFacts(label=f"{text}{each}", damage=tuple(skill.damage for skill in found), mean=0.1, disagree=0.4)
        for each in range(variants)
    )
    budgets = tuple(np.linspace(0, 1, 11).tolist())
    curve = CurveFacts(
        budgets=budgets,
        chosen=tuple(b**0.7 for b in budgets),
        random=budgets,
        most=tuple(b**0.5 for b in budgets),
        at=0.3,
    )
    return RecoveryFacts(
        run=run, unit="rows", original=text, skills=found, variants=told, stability={3: 0.93, 4: 0.5}, recall=0.99,
        curve=curve,
    )  # fmt: skip


def test_the_page_says_what_each_skill_lost_and_what_it_gets() -> None:
    text = "".join(Page(build_recovery_report(recovery_facts())).text)
    assert "90 of 306 rows kept" in text
    assert "3 skills were found in the instructions" in text
    assert "2 \u00b7 garden, word20.20010230" in text  # name, damage, rows, budget
    assert "At 30.0 % of the pool's rows, the chosen rows hold 43.1 % of all its damage; random rows would" in text
    assert "3: 0.93, 4: 0.50" in text
    assert "The search found 99.0 % of the true neighbours" in text


def test_the_atlas_has_a_column_a_variant_and_the_most_damaged_skill_is_the_darkest() -> None:
    page = Page(build_recovery_report(recovery_facts(variants=3)))
    heats = [str(a["style"]) for name, a in page.elements if name == "td" and "--heat" in str(a.get("style"))]
    assert len(heats) == 9
    assert heats[:3] == ["--heat:80.0%"] * 3
    assert heats[-3:] == ["--heat:0.0%"] * 3
    text = "".join(page.text)
    assert "Tokens with another first choice40.0 %40.0 %40.0 %" in text


def test_every_element_is_closed_and_every_link_leads_somewhere() -> None:
    page = Page(build_recovery_report(recovery_facts()))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(attributes["href"])[1:] for name, attributes in page.elements if name == "a"}
    assert targets == {"why", "skills", "budget", "atlas", "map", "scores", "balance", "examples", "run"}
    assert targets <= set(ids)


def test_hostile_text_stays_text() -> None:
    benign, hostile = (Page(build_recovery_report(recovery_facts(text))) for text in ("a", HOSTILE))
    assert hostile.tags == benign.tags
    assert not [key for _, attributes in hostile.elements for key in attributes if key.startswith("on")]


def test_nothing_is_loaded_from_elsewhere() -> None:
    styles = resources.files("datapipe.report").joinpath("paser.css").read_text(encoding="utf-8")
    assert "url(" not in styles
    assert "@import" not in styles


def test_what_is_not_known_is_left_out_or_a_dash() -> None:
    facts = recovery_facts()
    bare = replace(
        facts,
        run=replace(facts.run, map=None, balance=None, scores=None),
        skills=tuple(replace(s, damage=None, low=None, high=None, acceptance=None, examples=()) for s in facts.skills),
        variants=(replace(facts.variants[0], damage=(None, None, None), disagree=None),),
        curve=None,
        stability={},
        recall=None,
    )
    page = Page(build_recovery_report(bare))
    assert page.open == []
    targets = {str(attributes["href"])[1:] for name, attributes in page.elements if name == "a"}
    assert targets == {"why", "skills", "atlas", "examples", "run"}


@pytest.mark.parametrize("skills", [1, 64])
def test_few_or_many_skills_make_a_page(skills: int) -> None:
    page = Page(build_recovery_report(recovery_facts(skills=skills)))
    assert page.open == []


def test_a_skill_is_called_by_its_number_and_its_first_words() -> None:
    assert skill_name(3, ["a", "b", "c", "d", "e"]) == "3 \u00b7 a, b, c, d"
    assert skill_name(3, ()) == "3"


def test_skills_on_a_terminal_stand_with_the_most_damaged_first_and_the_rest_is_counted() -> None:
    rows = [
        {
            "cluster": at,
            "name": "a, [b]",
            "cds": at / 100,
            "low": 0.0,
            "high": 0.5,
            "rows": 9,
            "budget": None,
            "taken": 1,
        }
        for at in range(30)
    ]
    shown = io.StringIO()
    print_skills(rows, console=Console(file=shown, width=100))
    lines = shown.getvalue().splitlines()
    assert "29 \u00b7 a, [b]" in lines[4]
    assert "0.290" in lines[4]
    assert "and 6 more" in lines[-1]
