"""Rows of the image benchmark are those that its plans ask for, and advice rests on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import image_analysis, image_tables, pruning_evidence
from benchmarks.common import rows
from benchmarks.image_clusters import Agreement, agreed_clusters
from benchmarks.image_plans import ATTEMPTS, EARLIER, OURS, candidates, chosen, setting_from, setting_of
from benchmarks.image_scores import mean_rank
from datapipe.selection.evidence import published
from datapipe.storage.digest import digest_of

CONFIG = ("dataset", "encoder", "fraction", "method", "seed", "recipe", "setting")


def test_a_measured_row_has_the_digest_of_what_is_asked_for_today_so_nothing_is_measured_twice() -> None:
    measured = [row for row in rows("pruning_images") if row["method"] not in EARLIER and "trained_as" not in row]
    assert len(measured) >= 145
    for row in measured:
        setting = row["setting"]
        if row["method"] in OURS:
            setting = setting_from(row["setting"]).as_dict()
        elif setting is not None:
            setting = setting_of(row["method"], row["fraction"], {}).as_dict()
        config = {name: row[name] for name in CONFIG}
        assert digest_of({**config, "setting": setting}) == row["digest"], (row["method"], row["fraction"])


def test_no_row_tells_of_a_network_that_learnt_nothing() -> None:
    for name in image_tables.RAW:
        assert all(row["accuracy"] > 15 for row in rows(name)), name


def test_the_evidence_of_our_own_is_what_the_results_say() -> None:
    made = [*pruning_evidence.text(), *pruning_evidence.tested_text(), *pruning_evidence.images()]
    own = [row for row in published() if row.source.startswith("own benchmark")]
    assert own == [replace(row, half_width=round(row.half_width, 3)) for row in made]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
def test_candidates_of_every_choice_fit_the_fraction_and_keep_it(fraction: float) -> None:
    draws = np.random.default_rng(0)
    names = (
        "aum",
        "dual",
        "pseudo_label_aum",
        "knn_density",
        "coverage",
        "cluster_course",
        "agreed_course",
        "densities",
        "combined",
    )
    scores = {name: draws.random(400).astype(np.float32) for name in names}
    groups = {name: draws.integers(0, 10, 400).astype(np.int32) for name in ("label", "cluster", "agreed")}
    for choice in (OURS | ATTEMPTS).values():
        for name, setting in candidates(fraction, choice).items():
            assert setting_from(setting.as_dict()) == setting
            kept = chosen(setting, scores, groups, fraction=fraction, seed=0)
            assert len(kept) == round(400 * fraction), name


def row(method: str, seed: int, accuracy: float, **more: object) -> dict[str, object]:
    about = {"dataset": "cifar10", "encoder": "simclr", "fraction": 0.1, "method": method, "seed": seed}
    return {**about, "accuracy": accuracy, "worst_class": accuracy / 2, **more}


def test_gaps_are_parts_of_the_way_from_random_to_the_best_with_labels() -> None:
    table = [row("random", seed, 80.0 + seed / 10) for seed in range(3)]
    table += [row("default_labels", seed, 84.0 + seed / 10) for seed in range(3)]
    table += [row("default_label_free", seed, 82.0 + seed / 10, encoder="lite0") for seed in range(3)]
    free, labels = image_tables.gaps(table)
    assert (labels["minus_random"], labels["gap_closed"], labels["verdict"]) == (pytest.approx(4.0), 1.0, "win")
    assert (free["encoder"], free["gap_closed"]) == ("lite0", pytest.approx(0.5)), "random rows read no vectors"
    assert image_tables.means(table)[1]["kept_10"] == "80.10 ± 0.25"
    assert image_tables.means(table, of="worst_class")[1]["kept_10"] == "40.05 ± 0.12"


def test_clusters_that_neighbours_agree_on_are_the_groups_of_plain_data() -> None:
    draws = np.random.default_rng(1)
    labels = draws.integers(0, 3, 150)
    vectors = draws.normal(size=(3, 16))[labels] + 0.2 * draws.normal(size=(150, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    how = Agreement(neighbours=8, heads=2, steps=150, batch_rows=64)
    found, cosines = agreed_clusters(vectors, classes=3, how=how, device="cpu")
    assert image_analysis.of_clusters(found, labels)["accuracy"] == 100
    near = np.sort(vectors @ vectors.T - 3 * np.eye(150, dtype=np.float32), axis=1)[:, ::-1][:, :8]
    assert np.allclose(cosines, near, atol=1e-6)


def test_what_a_cut_keeps_is_told_by_ranks_shares_and_overlap() -> None:
    labels = np.repeat([0, 1], 5)
    scores = {"aum": np.arange(10, dtype=np.float32)}
    told = image_analysis.of_kept(np.array([0, 1, 8, 9]), scores, labels, best=np.array([8, 9, 7]))
    assert told == {
        "mean_rank": pytest.approx(0.45),
        "hardest": 50.0,
        "easiest": 50.0,
        "smallest_class": 50.0,
        "largest_class": 50.0,
        "in_best": 50.0,
    }
    clusters = image_analysis.of_clusters(np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.int32), labels)
    assert clusters["accuracy"] == 90.0
    assert (mean_rank([scores["aum"], -scores["aum"]]) == np.float32(0.45)).all()
