"""The page of a selection for recovery: RecoveryFacts -> sections -> page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.report.examples import examples
from datapipe.report.frame import identity, laid_out, why
from datapipe.report.markup import Html, count, cut, join, number, percent, tag
from datapipe.report.paser_map import skill_map
from datapipe.report.paser_plots import curve_plot
from datapipe.report.sections import balance, scores

if TYPE_CHECKING:
    from datapipe.report.paser_facts import RecoveryFacts, SkillFacts

__all__ = ["build_recovery_report"]

NAME_CHARACTERS, EXAMPLE_CHARACTERS = 60, 160
NEAR_MOST = 64
_DARKEST = 80
"""Per cent of the colour at the largest damage: the number in the cell stays readable."""


def build_recovery_report(facts: RecoveryFacts) -> str:
    """Return the page. Equal facts give equal bytes."""
    parts = {
        "Why": why(facts.run.strategy),
        "Skills": _skills(facts),
        "Budget": _budget(facts),
        "Atlas": _atlas(facts),
        "Map": skill_map(facts),
        "Scores": scores(facts.run),
        "Balance": balance(facts.run) if facts.run.balance is not None else None,
        "Examples": examples(facts.run),
        "Run": identity(facts.run),
    }
    return laid_out(facts.run, parts, kind="recovery report", styles=("paser.css",))


def _skills(facts: RecoveryFacts) -> Html:
    ordered = sorted(facts.skills, key=lambda skill: (-(skill.damage or 0.0), skill.cluster))
    says = (
        f"{count(len(ordered))} skills were found in the instructions, the most damaged first. Damage is how far "
        f"{facts.variants[0].label if facts.variants else 'the pruned model'} has moved away from {facts.original} on "
        "the tokens of the responses: mean Jensen-Shannon divergence, in nats, at most 0.693."
    )
    head = ("Skill", "Damage, 95 % interval", "Nats", "Rows", "Budget", "Taken", "Share", "Accepted")
    cells = [
        tag("th", name, scope="col", class_=("interval" if place == 1 else "n") if place else None)
        for place, name in enumerate(head)
    ]
    top = max((skill.high or skill.damage or 0.0 for skill in ordered), default=0.0) or 1.0
    table = tag(
        "table",
        tag("caption", f"What each skill lost, and what it gets; the budget counts {facts.unit}"),
        tag("thead", tag("tr", *cells)),
        tag("tbody", *(_skill(skill, facts, top) for skill in ordered)),
    )
    return join(
        tag("h2", "Skills", id="skills-title"), tag("p", says), tag("div", table, class_="scroll"),
        tag("p", _how_many(facts), class_="note"), _near(ordered),
    )  # fmt: skip


def _skill(skill: SkillFacts, facts: RecoveryFacts, top: float) -> Html:
    span = None
    if skill.damage is not None and skill.low is not None and skill.high is not None:
        left, width = 100 * skill.low / top, 100 * (skill.high - skill.low) / top
        whiskers = tag("i", style=f"left:{left:.2f}%;width:{width:.2f}%")
        span = tag("span", whiskers, tag("b", style=f"left:{100 * skill.damage / top:.2f}%"), aria_hidden="true")
    taken = skill.tokens_taken if facts.unit == "tokens" else skill.taken
    told = f"{number(skill.low)} to {number(skill.high)}, {count(skill.measured)} rows measured"
    budget, accepted = skill.budget, skill.acceptance
    numbers = (
        count(skill.rows),
        "\u2013" if budget is None else count(budget),
        count(taken or 0),
        percent(skill.taken, skill.rows),
        "\u2013" if accepted is None else percent(accepted, 1),
    )
    name = cut(skill.name, limit=NAME_CHARACTERS)
    return tag(
        "tr", tag("th", name, scope="row"), tag("td", span, class_="interval"),
        tag("td", number(skill.damage), class_="n", title=told), *(tag("td", each, class_="n") for each in numbers),
    )  # fmt: skip


def _how_many(facts: RecoveryFacts) -> str:
    says = "A dot is the score, which leans to the mean of all rows where few were measured; the bar is the interval."
    if facts.stability:
        tried = ", ".join(f"{k}: {number(index, digits=2)}" for k, index in sorted(facts.stability.items()))
        says += f" Agreement of clusterings of resampled rows, by number of skills tried (1 is the same): {tried}."
    if facts.recall is not None and facts.recall < 1:
        says += f" The search found {percent(facts.recall, 1)} of the true neighbours."
    return says


def _near(ordered: list[SkillFacts]) -> Html | None:
    known = [skill for skill in ordered if skill.examples][:NEAR_MOST]
    if not known:
        return None
    items = [
        tag(
            "li",
            tag("b", skill.name),
            *(tag("p", cut(text, limit=EXAMPLE_CHARACTERS), dir="auto") for text in skill.examples),
        )
        for skill in known
    ]
    return tag("details", tag("summary", "Instructions in the middle of each skill"), tag("ul", *items, class_="near"))


def _budget(facts: RecoveryFacts) -> Html:
    found = facts.curve
    if found is None:
        return Html("")
    place = min(range(len(found.budgets)), key=lambda each: abs(found.budgets[each] - found.at))
    held, plain, most = (values[place] for values in (found.chosen, found.random, found.most))
    says = (
        f"At {percent(found.at, 1)} of the pool's {facts.unit}, the chosen rows hold {percent(held, 1)} of all its "
        f"damage; random rows would hold {percent(plain, 1)}, the most damaged ones {percent(most, 1)}. More held "
        "damage is not more recovery: rows that cannot be learnt are among the most damaged."
    )
    lines = [
        tag("tr", *(tag("td", percent(value, 1), class_="n") for value in values))
        for values in zip(found.budgets, found.chosen, found.random, found.most, strict=True)
    ]
    head = [tag("th", name, scope="col", class_="n") for name in ("Budget", "Chosen", "Random", "Most damaged")]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines))
    plot = curve_plot(found, label=f"Damage held by the budget. {says}")
    more = tag("details", tag("summary", "The plot as a table"), tag("div", table, class_="scroll"))
    return join(tag("h2", "Budget", id="budget-title"), tag("p", says), tag("figure", plot), more)


def _atlas(facts: RecoveryFacts) -> Html:
    if not facts.variants:
        return Html("")
    top = max((value or 0.0 for variant in facts.variants for value in variant.damage), default=0.0) or 1.0
    ordered = sorted(facts.skills, key=lambda skill: (-(facts.variants[0].damage[skill.cluster] or 0.0), skill.cluster))
    says = (
        "Which skill each pruned model lost, in nats; the darker, the more."
        if len(facts.variants) > 1
        else "Damage by skill, in nats; name further pruned models to see what each compression breaks."
    )
    head = [tag("th", "Skill", scope="col"), *(tag("th", each.label, scope="col") for each in facts.variants)]
    lines = [
        tag(
            "tr",
            tag("th", cut(skill.name, limit=NAME_CHARACTERS), scope="row"),
            *(_cell(variant.damage[skill.cluster], top) for variant in facts.variants),
        )
        for skill in ordered
    ]
    whole = [tag("td", number(variant.mean)) for variant in facts.variants]
    other = [
        tag("td", "\u2013" if variant.disagree is None else percent(variant.disagree, 1)) for variant in facts.variants
    ]
    foot = tag(
        "tfoot",
        tag("tr", tag("th", "Mean of all rows", scope="row"), *whole),
        tag("tr", tag("th", "Tokens with another first choice", scope="row"), *other),
    )
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines), foot, class_="atlas")
    return join(tag("h2", "Damage atlas", id="atlas-title"), tag("p", says), tag("div", table, class_="scroll"))


def _cell(value: float | None, top: float) -> Html:
    share = 0.0 if value is None else _DARKEST * value / top
    return tag("td", number(value), style=f"--heat:{share:.1f}%")
