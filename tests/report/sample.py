"""Facts of a small run, for the tests of the page and of the tables."""

from __future__ import annotations

from datapipe.report.facts import (
    ClassBalance,
    Example,
    MapFacts,
    MapPoint,
    MatchFacts,
    RowCounts,
    RunFacts,
    RunIdentity,
    ScoreHistogram,
    StrategyFacts,
    StratumExamples,
    StratumFacts,
)


def make_facts(text: str = "How do I change my PIN?", *, strata: int = 3, labels: bool = True) -> RunFacts:
    """Facts in which `text` stands wherever a source's own words can stand."""
    names = [f"{text} {place}" for place in range(strata)]
    groups = tuple(
        StratumFacts(name=name, total=100 + place, kept=30, mean_score=0.2, scores=((10, 20, 0), (20, 30 + place, 20)))
        for place, name in enumerate(names)
    )
    accepted, kept = sum(group.total for group in groups), 30 * strata
    example = Example(row_id="0f" * 16, text=text, score=0.25)
    return RunFacts(
        identity=RunIdentity(
            source=text,
            digest="9f3c" * 8,
            seed=7,
            model=text,
            model_digest="ab" * 16,
            config={f"own {text}": text, "keep": 0.3},
            versions={"secateur": "0.1.0", f"own {text}": text},
        ),
        counts=RowCounts(
            rows_in=accepted + 3,
            kept=kept,
            rejected={f"own {text}": 3},
            dropped={"over_budget": accepted - kept - 1, f"own {text}": 1},
            truncated=2,
            duplicates=5,
            tokens=1000,
            tokens_kept=300,
        ),
        strategy=StrategyFacts(name=text, budget=text, why=(text, "Because."), warnings=(text,)),
        scores=ScoreHistogram(
            metric=text,
            higher=text,
            edges=(0.0, 0.25, 0.5, 0.75),
            kept=(10 * strata, 20 * strata, 0),
            dropped=(20 * strata, accepted - kept - 40 * strata, 20 * strata),
            cuts=(0.6,),
            missing=1,
        ),
        strata=groups,
        balance=ClassBalance(
            column=text,
            before={name: 100 + place for place, name in enumerate(names)},
            after=dict.fromkeys(names, 30),
        )
        if labels
        else None,
        map=MapFacts(
            method="PCA",
            note=text,
            points=tuple(
                MapPoint(float(place), float(place * place % 7), place % 3 == 0, names[place % strata], 0.1 * place)
                for place in range(40)
            ),
        ),
        matches=(MatchFacts(rule=text, text=text, other=text, row_id="0a" * 16, similarity=0.99),),
        examples=tuple(StratumExamples(stratum=name, kept=(example,), dropped=(example, example)) for name in names),
    )
