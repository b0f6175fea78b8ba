"""A stage's version is raised whenever its code changes what it writes: each version is pinned to its source.

When this test fails, decide: does the change alter any byte that the stage writes? If so raise the stage's `version`;
in both cases write the new pins with `python -m tests.test_stage_versions`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
from pathlib import Path

import pytest

PINS = Path(__file__).with_name("stage_versions.json")
ROOT = Path(__file__).resolve().parent.parent

SOURCES = {
    "datapipe.stages.ingest.Ingest": [
        "storage/ingest.py",
        "storage/roles.py",
        "storage/images.py",
        "embedding/image.py",
        "workers/encoders/containers.py",
        "workers/encoders/picture.py",
        "storage/rowid.py",
        "storage/canonical.py",
        "storage/refused.py",
        "storage/sort.py",
        "storage/parquet.py",
        "storage/vectors.py",
        "storage/formats/*.py",
    ],
    "datapipe.stages.ingest_more.IngestMore": [
        *(f"storage/{name}.py" for name in ("generations", "ingest", "roles", "images", "rowid", "canonical")),
        *(f"storage/{name}.py" for name in ("refused", "sort", "parquet", "vectors")),
        "storage/formats/*.py",
    ],
    "datapipe.stages.embed.Embed": [
        "embedding/text.py",
        "storage/vectors.py",
        "workers/pack.py",
        "workers/course.py",
        "workers/tasks/embed.py",
        "workers/encoders/attention.py",
        "workers/encoders/bert.py",
        "workers/encoders/packed.py",
        "workers/encoders/pooling.py",
        "workers/encoders/steps.py",
    ],
    "datapipe.stages.embed_images.EmbedImages": [
        "embedding/image.py",
        "storage/images.py",
        "storage/sort.py",
        "storage/vectors.py",
        "workers/pack.py",
        "workers/course.py",
        "workers/tasks/image.py",
        "workers/encoders/containers.py",
        "workers/encoders/efficientnet.py",
        "workers/encoders/picture.py",
        "workers/encoders/preprocess.py",
        "workers/encoders/vision.py",
    ],
    "datapipe.stages.instructions.InstructionPool": [
        "storage/ingest.py",
        *(f"storage/{name}.py" for name in ("instructions", "rowid", "canonical", "refused", "sort", "parquet")),
        "storage/formats/*.py",
    ],
    "datapipe.stages.instruction_vectors.EmbedInstructions": [
        *("embedding/text.py", "stages/embed.py", "storage/vectors.py", "workers/pack.py", "workers/course.py"),
        "workers/tasks/embed.py",
        *(f"workers/encoders/{name}.py" for name in ("attention", "bert", "packed", "pooling", "steps")),
    ],
    "datapipe.stages.skills.FindSkills": [
        *(f"paser/{name}.py" for name in ("clusters", "clusters_file", "graph", "labelling", "names")),
        *(f"paser/{name}.py" for name in ("spectrum", "symnmf", "tree")),
        *("metrics/assign.py", "metrics/kmeans.py", "metrics/knn.py", "stages/instruction_vectors.py"),
        *("storage/lists.py", "storage/vectors.py"),
    ],
    "datapipe.stages.states.States": [
        *(f"paser/{name}.py" for name in ("bodies", "models", "rendering")),
        *("storage/parquet.py", "workers/chat.py", "workers/pack.py", "workers/course.py"),
        *("workers/tasks/causal.py", "workers/encoders/causal.py"),
    ],
    "datapipe.stages.damage.Damage": [
        *(f"paser/{name}.py" for name in ("bodies", "divergence", "heads", "kernels", "models", "rendering", "rows")),
        *("stages/states.py", "workers/chat.py", "workers/pack.py", "workers/course.py"),
        *("workers/tasks/causal.py", "workers/encoders/causal.py"),
    ],
    "datapipe.stages.alone.Alone": [
        *(f"paser/{name}.py" for name in ("bodies", "models", "rendering")),
        *("stages/states.py", "workers/chat.py", "workers/pack.py", "workers/course.py"),
        *("workers/tasks/causal.py", "workers/encoders/causal.py"),
    ],
    "datapipe.stages.survey.Survey": [
        *(f"paser/{name}.py" for name in ("bodies", "divergence", "heads", "kernels", "models", "rendering", "rows")),
        *("paser/survey.py", "stages/damage.py", "stages/states.py", "storage/order.py"),
        *("workers/chat.py", "workers/pack.py", "workers/course.py"),
        *("workers/tasks/causal.py", "workers/encoders/causal.py"),
    ],
    "datapipe.stages.pick.Pick": [
        *(f"paser/{name}.py" for name in ("allocate", "conflicts", "ies")),
        *(f"paser/{name}.py" for name in ("pick", "pick_config", "pick_paper", "pick_shares")),
        *("selection/quotas.py", "storage/order.py", "storage/vectors.py"),
    ],
    "datapipe.stages.export_instructions.ExportInstructions": [
        *("stages/select.py", "storage/export.py", "storage/parquet.py"),
    ],
    "datapipe.distill.rewrite_stages.RewriteAnswers": [
        "distill/rewrite_checks.py",
        "distill/rewrite_prompt.py",
        "workers/chat.py",
        "workers/pack.py",
        "workers/course.py",
        "workers/tasks/causal.py",
        "workers/tasks/generate.py",
        "workers/encoders/causal.py",
        "workers/encoders/decoding.py",
    ],
    "datapipe.distill.rewrite_stages.GatherRewritten": ["storage/parquet.py"],
    "datapipe.stages.tokens.CountTokens": ["workers/tokenizer.py"],
    "datapipe.stages.screen.Screen": ["dedup/*.py", "stages/leaks.py", "stages/matching.py", "storage/sort.py"],
    "datapipe.stages.prototypes.FitPrototypes": [
        "metrics/assign.py",
        "metrics/kmeans.py",
        "metrics/prototypes.py",
        "storage/order.py",
    ],
    "datapipe.stages.drift.UpdatePrototypes": [
        *(f"metrics/{name}.py" for name in ("assign", "drift", "kmeans", "prototypes")),
        "stages/prototypes.py",
        "storage/order.py",
    ],
    "datapipe.stages.changes.Changes": ["stages/choosing.py", "stages/select.py"],
    "datapipe.stages.prototypes.ScorePrototypes": ["metrics/assign.py", "metrics/prototypes.py"],
    "datapipe.stages.random.ScoreRandom": ["metrics/random.py", "storage/order.py"],
    "datapipe.stages.dynamics.TrainHeads": [
        *(f"metrics/{name}.py" for name in ("dynamics", "errors_of_heads")),
        *("proxies/adamw.py", "proxies/heads.py", "proxies/training.py"),
        *("stages/proxy.py", "stages/vectors.py"),
    ],
    "datapipe.stages.dynamics.ReadDynamics": [
        *("metrics/dynamics.py", "metrics/imported.py", "proxies/recorder.py", "stages/proxy.py"),
    ],
    "datapipe.stages.memorization.ScoreMemorization": [
        *(f"metrics/{name}.py" for name in ("memorization", "errors_of_heads")),
        *(
            "proxies/adamw.py",
            "proxies/heads.py",
            "proxies/training.py",
            "stages/proxy.py",
            "stages/vectors.py",
            "storage/order.py",
        ),
    ],
    "datapipe.stages.pseudo_labels.ScorePseudoLabels": [
        *(f"metrics/{name}.py" for name in ("pseudo_labels", "errors_of_heads", "assign", "kmeans")),
        *("proxies/adamw.py", "proxies/heads.py", "proxies/training.py"),
        *("stages/proxy.py", "stages/vectors.py"),
    ],
    "datapipe.stages.imported.ScoreImported": ["metrics/imported.py", "stages/proxy.py"],
    "datapipe.stages.class_means.ScoreClassMeans": [
        "metrics/class_means.py",
        "stages/proxy.py",
        "stages/vectors.py",
        "storage/vectors.py",
    ],
    "datapipe.stages.neighbours.ScoreNeighbours": [
        "metrics/assign.py",
        "metrics/density.py",
        "metrics/kmeans.py",
        "metrics/knn.py",
        "stages/proxy.py",
        "stages/vectors.py",
        "storage/lists.py",
    ],
    "datapipe.stages.coverage.ScoreCoverage": [
        *("metrics/coverage.py", "metrics/strips.py", "stages/proxy.py", "stages/vectors.py"),
    ],
    "datapipe.stages.duplicates.FindDuplicates": [
        "dedup/exact.py",
        "dedup/semantic.py",
        "dedup/keepers.py",
        "metrics/assign.py",
        "metrics/kmeans.py",
        "metrics/knn.py",
        "stages/vectors.py",
        "storage/lists.py",
    ],
    "datapipe.stages.select.Select": [
        "stages/choosing.py",
        "selection/*.py",
        "selection/evidence.json",
        "storage/order.py",
    ],
    "datapipe.stages.teach.TeachRows": [
        *(f"distill/{name}.py" for name in ("byproducts", "codec", "head_teacher", "labels", "layout", "packing")),
        *("distill/teachers.py", "proxies/adamw.py", "proxies/heads.py", "storage/order.py"),
        *("stages/proxy.py", "stages/wanted.py"),
        *(f"workers/tasks/{name}.py" for name in ("classify", "image")),
        *("workers/pack.py", "workers/course.py"),
    ],
    "datapipe.stages.teach_tokens.TeachTokens": [
        *(f"distill/{name}.py" for name in ("codec", "layout", "packing", "teachers")),
        *(f"workers/tasks/{name}.py" for name in ("causal", "teach")),
        *("stages/teach.py", "stages/wanted.py", "workers/encoders/causal.py", "workers/pack.py", "workers/course.py"),
    ],
    "datapipe.stages.soft_labels.WriteSoftLabels": [
        *(f"distill/{name}.py" for name in ("byproducts", "layout", "packing", "writer")),
        "storage/sort.py",
    ],
    "datapipe.stages.export.Export": ["storage/export.py", "storage/parquet.py"],
    "datapipe.stages.atlas.Atlas": ["paser/allocate.py"],
    "datapipe.stages.paser_report.RecoveryReport": [
        *(f"report/{name}.py" for name in ("examples", "facts", "frame", "map2d", "markup", "measure", "paser")),
        *(f"report/{name}.py" for name in ("paser_facts", "paser_map", "paser_plots", "plots", "scatter", "sections")),
        *("paser/curve.py", "report/tally.py", "selection/quotas.py", "stages/atlas.py", "stages/report_sample.py"),
        *("report/page.css", "report/page.js", "report/paser.css"),
    ],
    "datapipe.stages.report.Report": [
        *(f"report/{name}.py" for name in ("examples", "facts", "frame", "map2d", "markup", "measure", "page")),
        *(f"report/{name}.py" for name in ("plots", "scatter", "sections", "tally")),
        "stages/report_sample.py",
        "stages/thumbnails.py",
        "report/page.css",
        "report/page.js",
    ],
}
"""What each stage's bytes hang on besides its own file; `*` stands for any name."""


def code_digest(path: Path) -> str:
    """Digest of a file's code without docstrings, comments and layout; of all of it where it is no Python."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def current(name: str) -> dict[str, object]:
    """A stage's version and the digest of the code that it runs."""
    module, _, attribute = name.rpartition(".")
    stage = getattr(importlib.import_module(module), attribute)
    found = [sorted((ROOT / "datapipe").glob(pattern)) for pattern in SOURCES[name]]
    assert all(found), f"{name}: a source is not there"
    files = [path for paths in found for path in paths] + [Path(str(importlib.import_module(module).__file__))]
    digest = hashlib.sha256("".join(code_digest(path) for path in files).encode()).hexdigest()[:16]
    return {"version": stage.version, "code": digest}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_changed_stage_has_a_new_version_or_a_new_pin(name: str) -> None:
    assert current(name) == json.loads(PINS.read_text())[name], f"{name} changed: see the docstring of this file"


if __name__ == "__main__":
    PINS.write_text(json.dumps({name: current(name) for name in sorted(SOURCES)}, indent=1) + "\n")
