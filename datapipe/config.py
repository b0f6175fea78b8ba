"""What a curation run is asked for: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeGuard, get_args

from datapipe.errors import BudgetError, ConfigError
from datapipe.options import (
    DEFAULT_KEEP,
    DEFAULT_METRIC,
    RECORDED_METRICS,
    RUN_OPTIONS,
    SCORES_OPTIONS,
    CurateOptions,
    DedupKeep,
    DedupMode,
    ExecutorName,
    LeakRule,
    MetricName,
    ScoresHigher,
    Strategy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.selection.budget import Budget

__all__ = [
    "SCORES_OPTIONS",
    "CurateConfig",
    "CurateOptions",
    "ExecutorName",
    "MetricName",
    "ScoresHigher",
    "Strategy",
    "budget_of",
    "read_config_file",
]


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Options of a run. Unset columns are found where there is only one candidate.

    Attributes:
        keep: Fraction to keep of the rows that screening leaves, 0 < keep <= 1, but at least one row; 0.3 where no
            budget is given.
        keep_rows: Rows to keep, at least 1. Excludes `keep` and `keep_tokens`.
        keep_tokens: Tokens to keep at most, counted by the run's tokenizer.
        metric: How rows are scored, by a name of `datapipe.metrics.base.METRICS`.
        strategy: How scores become a choice. `auto` follows the published evidence; `hard` and `easy` are obeyed, with
            a warning where the evidence is against them; `strata` spreads the budget over the scores; `random` ignores
            them.
        preset: A published method by name (`docs/presets.md`): it sets the metric and how scores become a choice, so it
            excludes another `metric`, a `strategy` and `balance`.
        window_start: Part of the rows, the hardest first, that the window of the preset `bws` leaves out.
        balance: Column whose values get at least half of an equal share of the budget each.
        text_column: Text to embed. Default: the column `text`, or the only string column.
        embedding_column: Vectors that the source brings; then nothing is embedded.
        image_column: Images to embed instead of texts: image files in cells, or paths relative to the source's folder.
            Needs a vision model in `model`, unless the source brings vectors or the metric needs none.
        label_column: Class labels: they set the number of prototypes and the strata.
        id_column: Column whose values name the rows; must be unique. Default: row ids come from the rows' content.
        split_column: Parts of the source (train, test, ...); rows of another part than `split` are not chosen from.
        split: The part to choose from.
        leaks: Which rows of that part go out for a row of another part, with the reason `leak`: `exact` those that are
            equal; `near` also those that quote one, and, where the run has vectors, those whose cosine with one is at
            least `protect_threshold`.
        dedup: `exact` takes out all but one of the rows whose normalised text, or image file, is equal; `semantic`
            those, and all but one of the rows whose vectors say the same.
        dedup_threshold: Cosine from which two rows say the same, 0 < threshold <= 1.
        dedup_keep: Which of two rows that say the same stays: `first` (the lower row id), the `longest` text, the
            `hardest` (furthest from the centroid of its neighbourhood, as SemDeDup has it) or the `easiest`.
        protect: File with evaluation rows; what matches one, exactly or nearly, is taken out.
        protect_threshold: Cosine from which a row matches nearly, 0 < threshold <= 1. At 0.98 nearly all matches are
            copies with a word changed; at 0.95 most are other questions on the same matter.
        model: Embedder: `default` (embedded), `embedded:NAME`, a local folder, or a hub id.
        tokenizer: Model whose tokenizer counts tokens; default: the run's model.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; default from `DATAPIPE_DEVICE`, else `auto`.
        prototypes: Centroids k; default: the number of classes, else the square root of the rows within 16 ... 50,000;
            for `pseudo_label_aum` twice the root of the rows within 8 ... 1,000.
        dynamics: File of a `DynamicsRecorder`: el2n, margin, entropy, forgetting, aum and dual come from it, and no
            proxy is trained.
        scores: File of scores for the metric `imported`.
        scores_column: Its scores; default `score`.
        scores_id: Its ids: the values of `id_column`, or row ids; default `row_id`.
        scores_higher: What its high scores mean: `harder` (the default), `easier`, `rarer` or `better`.
        seed: Seeds hash order and k-means.
        max_rejected: Most rows that may be rejected before the run is refused; default: any number but all.
        shard_rows: Most rows of a canonical shard, about; a killed run loses at most the shards in the making.
    """

    keep: float | None = None
    keep_rows: int | None = None
    keep_tokens: int | None = None
    metric: MetricName = DEFAULT_METRIC
    strategy: Strategy = "auto"
    preset: str | None = None
    window_start: float | None = None
    balance: str | None = None
    text_column: str | None = None
    embedding_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    split_column: str | None = None
    split: str = "train"
    leaks: LeakRule = "exact"
    dedup: DedupMode = "none"
    dedup_threshold: float = 0.95
    dedup_keep: DedupKeep = "first"
    protect: str | None = None
    protect_threshold: float = 0.98
    model: str = "default"
    tokenizer: str | None = None
    device: str | None = None
    prototypes: int | None = None
    dynamics: str | None = None
    scores: str | None = None
    scores_column: str | None = None
    scores_id: str | None = None
    scores_higher: ScoresHigher | None = None
    seed: int = 0
    max_rejected: int | None = None
    shard_rows: int = 32_768

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_budget()
        self._check_columns()
        self._apply_preset()
        _one_of("metric", self.metric, get_args(MetricName))
        _one_of("strategy", self.strategy, get_args(Strategy))
        _one_of("dedup", self.dedup, get_args(DedupMode))
        _one_of("leaks", self.leaks, get_args(LeakRule))
        if self.leaks != "exact" and self.split_column is None:
            raise ConfigError("leaks='near' compares the parts of a source: name their column with split_column")
        _one_of("dedup_keep", self.dedup_keep, get_args(DedupKeep))
        if self.dedup_keep != "first" and self.dedup != "semantic":
            raise ConfigError("dedup_keep says which of two rows that say the same stays: it needs dedup='semantic'")
        self._check_given()
        _in_range("seed", self.seed, 0, 2**63 - 1)
        _in_range("shard_rows", self.shard_rows, 1, 1 << 22)
        if self.prototypes is not None:
            _in_range("prototypes", self.prototypes, 1, 1 << 22)
        if self.max_rejected is not None:
            _in_range("max_rejected", self.max_rejected, 0, 2**63 - 1)
        if not _is_share(self.dedup_threshold):
            raise ConfigError(f"dedup_threshold must be above 0 and at most 1, got {self.dedup_threshold!r}")
        if not _is_share(self.protect_threshold):
            raise ConfigError(f"protect_threshold must be above 0 and at most 1, got {self.protect_threshold!r}")

    def _check_texts(self) -> None:
        for name in _TEXTS:
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "model"):
                raise ConfigError(f"{name} must be a string, got {value!r}")

    def _check_given(self) -> None:
        imports = [name for name in SCORES_OPTIONS if getattr(self, name) is not None]
        if self.metric == "imported" and self.scores is None:
            raise ConfigError("the metric imported reads a file of scores: name it with scores")
        if imports and self.metric != "imported":
            raise ConfigError(f"{imports[0]} belongs to the metric imported; the metric is {self.metric}")
        if self.scores_higher is not None:
            _one_of("scores_higher", self.scores_higher, get_args(ScoresHigher))
        if self.dynamics is not None and self.metric not in RECORDED_METRICS:
            raise ConfigError(
                f"dynamics gives {', '.join(RECORDED_METRICS)}; the metric {self.metric} is not made of them"
            )

    def _apply_preset(self) -> None:
        if self.window_start is not None and self.preset != "bws":
            raise ConfigError("window_start belongs to the preset bws")
        if self.preset is None:
            return
        from datapipe.selection.presets import get_preset

        metric = get_preset(self.preset).metric
        if self.metric not in {metric, DEFAULT_METRIC}:
            raise ConfigError(_contradiction(self.preset, "metric", self.metric, metric))
        if self.strategy != "auto":
            raise ConfigError(_contradiction(self.preset, "strategy", self.strategy))
        if self.balance is not None:
            raise ConfigError(_contradiction(self.preset, "balance", self.balance))
        if self.window_start not in {None, 0} and (not _is_share(self.window_start) or self.window_start == 1):
            raise ConfigError(f"window_start must be a fraction from 0 and below 1, got {self.window_start!r}")
        fraction = budget_of(self).fraction
        if self.window_start is not None and fraction is not None and self.window_start + fraction > 1 + 1e-9:
            raise ConfigError(
                f"a window from {self.window_start:g} on holds {1 - self.window_start:.3g} of the rows, and "
                f"{fraction:g} are to be kept: lower window_start or keep"
            )
        object.__setattr__(self, "metric", metric)

    def _check_budget(self) -> None:
        given = [name for name in ("keep", "keep_rows", "keep_tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise BudgetError(f"{' and '.join(given)} exclude each other: a run has one budget")
        if self.keep is not None and not _is_share(self.keep):
            raise BudgetError(f"keep must be a fraction above 0 and at most 1, got {self.keep!r}")
        for name in ("keep_rows", "keep_tokens"):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise BudgetError(f"{name} must be a whole number of at least 1, got {value!r}")

    def _check_columns(self) -> None:
        if self.image_column is not None:
            if self.text_column is not None:
                raise ConfigError("image_column and text_column exclude each other: a run scores images or texts")
            if self.keep_tokens is not None:
                raise ConfigError("keep_tokens needs text_column: images have no tokens to count; give keep_rows")
            return
        if self.embedding_column is None or self.text_column is not None:
            return
        if self.keep_tokens is not None:
            raise ConfigError("keep_tokens needs text_column: vectors alone have no tokens to count")
        if self.dedup == "exact":
            raise ConfigError("dedup='exact' compares texts: name the text_column")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], *, origin: str = "options") -> CurateConfig:
        """Build from names and values; a dash in a name counts as an underscore, a path as a string.

        Raises:
            ConfigError: A name is unknown; says where it stands and what comes nearest.
        """
        clean = _named(options, [each.name for each in fields(cls)], origin=origin)
        if clean.get("preset") is not None and clean.get("metric") is not None:
            _refuse_metric(clean["preset"], clean["metric"])
        return cls(
            **{name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in clean.items()}
        )


def budget_of(config: CurateConfig) -> Budget:
    """The run's budget: as given, else `DEFAULT_KEEP` of the rows."""
    from datapipe.selection.budget import Budget

    if config.keep_rows is None and config.keep_tokens is None:
        return Budget(fraction=DEFAULT_KEEP if config.keep is None else config.keep)
    return Budget(rows=config.keep_rows, tokens=config.keep_tokens)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read options from a TOML file: the names of `CurateConfig`, and `RUN_OPTIONS`; `source` may be a list.

    Raises:
        ConfigError: The file is missing or no TOML, or a name in it is unknown; names it.
    """
    try:
        found = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    options = _named(found, [*RUN_OPTIONS, *(each.name for each in fields(CurateConfig))], origin=str(path))
    source, out = options.get("source", ""), options.get("out", "")
    if not isinstance(out, str):
        raise ConfigError(f"{path}: out must be a string, got {out!r}")
    if not isinstance(source, str) and not (isinstance(source, list) and all(isinstance(each, str) for each in source)):
        raise ConfigError(f"{path}: source must be a string or a list of strings, got {source!r}")
    if not isinstance(options.get("update", False), bool):
        raise ConfigError(f"{path}: update must be true or false, got {options['update']!r}")
    return options


_TEXTS = (
    *("balance", "preset", "text_column", "embedding_column", "label_column", "image_column", "id_column"),
    *("split_column", "protect", "model", "tokenizer", "device"),
    *("dynamics", "scores", "scores_column", "scores_id"),
)


def _named(options: Mapping[str, Any], known: Sequence[str], *, origin: str) -> dict[str, Any]:
    """The options under the names that are known. Raises `ConfigError` for another one."""
    clean = {name.replace("-", "_"): value for name, value in options.items()}
    for name in clean:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"{origin}: unknown option {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    return clean


def _refuse_metric(preset: object, metric: object) -> None:
    from datapipe.selection.presets import get_preset

    own = get_preset(str(preset)).metric
    if metric != own:
        raise ConfigError(_contradiction(str(preset), "metric", metric, own))


def _contradiction(preset: str, name: str, value: object, own: str | None = None) -> str:
    sets = f"scores by {own}" if own is not None else "decides that itself"
    return f"preset {preset!r} and {name} {value!r} contradict each other: the preset {sets}; leave one of them out"


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _in_range(name: str, value: object, low: int, high: int) -> None:
    if not _is_whole(value) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
