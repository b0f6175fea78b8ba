"""Which stages a selection for recovery has, from its options, its pool and its models.

pool -> vectors -> skills -> [states -> damage_LABEL ... | survey_LABEL ...] -> [alone] -> pick -> atlas -> exported
-> paser_report
"""

from __future__ import annotations

from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from datapipe.paser.models import Models
from datapipe.paser.told import reasons
from datapipe.stages.alone import Alone
from datapipe.stages.atlas import Atlas, AtlasConfig
from datapipe.stages.damage import Damage
from datapipe.stages.embedder import Embedder, arithmetic_bits
from datapipe.stages.export_instructions import ExportInstructions
from datapipe.stages.instruction_vectors import EmbedInstructions
from datapipe.stages.instructions import InstructionPool, PoolConfig
from datapipe.stages.paser_report import RecoveryReport, RecoveryReportConfig
from datapipe.stages.pick import Pick
from datapipe.stages.skills import FindSkills, SkillsConfig
from datapipe.stages.states import States
from datapipe.stages.survey import Survey
from datapipe.storage.instructions import columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.paser.options import RecoveryConfig
    from datapipe.pipeline import Stage
    from datapipe.settings import Settings
    from datapipe.storage.source import Source

__all__ = ["RecoveryWiring", "embedder_facts", "shard_rows_of", "title_of"]


SHARD_ROWS, LEAST_SHARD_ROWS = 8_192, 32
STATES_BYTES = 128 << 20
USUAL_TOKENS, USUAL_WIDTH = 256, 4_096


class RecoveryWiring:
    """Columns, models and stages of a run.

    Args:
        config: The options.
        source: The opened pool.
        original: Folder or cached hub id of the original model.
        pruned: The same of each pruned one.
        settings: The machine's.

    Attributes:
        columns: Which column of the pool is what.
        device: Where models run.
        workers: Threads; None for one a core.

    Raises:
        ColumnError: The pool has no instructions and responses, and no conversations.
    """

    def __init__(
        self, config: RecoveryConfig, source: Source, *, original: str, pruned: Sequence[str], settings: Settings
    ) -> None:
        self.config, self.source = config, source
        self._original, self._pruned = original, tuple(pruned)
        self.columns = columns_of(source.schema.names, config.columns)
        self.device = config.device or settings.device
        self.workers = settings.workers

    @cached_property
    def models(self) -> Models:
        """The models, checked, and loaded when a stage first asks for them. The caller closes them."""
        own = self.config
        return Models(
            self._original,
            self._pruned,
            device=self.device,
            dtype=own.dtype,
            max_length=own.max_length,
            token_budget=own.token_budget,
        )

    @cached_property
    def embedder(self) -> Embedder:
        """The run's embedder, loaded when it is first asked for."""
        return Embedder(self.config.embedder, device=self.device)

    def close(self) -> None:
        """Let go of the models."""
        if "models" in self.__dict__:
            self.models.close()

    @property
    def measured(self) -> tuple[tuple[str, str], ...]:
        """Label of each pruned model, and the stage that measures it; the first decides."""
        return tuple((label, stage.name) for label, stage in zip(self.models.labels, self._damages(), strict=True))

    def stages(self, digests: Sequence[str]) -> list[Stage]:
        """Make the stages over a pool whose files have these digests."""
        own, pick = self.config, self.config.pick
        first = self.measured[0][1]
        alone = [Alone.of(self.models, self.models.labels[0])] if pick.method == "ifd" else []
        return [
            InstructionPool(self.source, self.pool_config(digests)),
            self._vectors(),
            self._skills(),
            *self._measuring(),
            *alone,
            Pick(pick, damage=first),
            Atlas(AtlasConfig(variants=self.measured, prior_rows=own.prior_rows, seed=own.seed)),
            ExportInstructions(self.source, tuple(digests), self.columns),
            self._report(),
        ]

    def pool_config(self, digests: Sequence[str]) -> PoolConfig:
        """What the rows depend on."""
        own, files = self.config, tuple(zip((file.uri for file in self.source.files), digests, strict=True))
        rows = own.shard_rows or (SHARD_ROWS if own.survey else shard_rows_of(self.width, own.max_length))
        return PoolConfig(files=files, columns=self.columns, shard_rows=rows, max_chars=own.max_chars)

    @property
    def answers(self) -> bool:
        """Whether responses are embedded: also where this choice does not need them, so that another costs nothing."""
        return self.config.conflicts != "off"

    def _vectors(self) -> Stage:
        model = self.embedder
        return EmbedInstructions(
            worker=model.worker,
            model=model.name,
            digest=model.digest,
            dim=model.dim,
            bits=model.bits,
            answers=self.answers,
        )

    def _skills(self) -> Stage:
        return FindSkills(SkillsConfig(clusters=self.config.skills), self._device, arithmetic_bits(self._device))

    def _measuring(self) -> list[Stage]:
        return [*([] if self.config.survey else [States.of(self.models)]), *self._damages()]

    def _damages(self) -> list[Stage]:
        """What measures each of the pruned models, in their order."""
        own, models = self.config, self.models
        if not own.survey:
            return [Damage.of(models, label) for label in models.labels]
        first, *others = models.labels
        asked: dict[str, Any] = {"power": own.pick.power, "seed": own.seed}
        return [
            Survey.of(models, first, **asked),
            *(Survey.of(models, label, **asked, further=True) for label in others),
        ]

    @property
    def width(self) -> int:
        """Numbers in a state of the original, as its config.json says, or a usual number."""
        from datapipe.workers.encoders.library import config_of
        from datapipe.workers.folder import resolve
        from datapipe.workers.spec import ModelSpec

        config = config_of(resolve(ModelSpec("original", self._original, task="causal"))).get_text_config()
        return int(getattr(config, "hidden_size", USUAL_WIDTH))

    @cached_property
    def _device(self) -> str:
        from datapipe.workers.device import resolve_devices

        return str(resolve_devices(self.device)[0])

    def _report(self) -> Stage:
        from datapipe.runs import versions

        facts = self.models.facts
        return RecoveryReport(
            RecoveryReportConfig(
                title=title_of(self.source),
                options={**self.config.told(), "pruned": [facts[label]["name"] for label in self.models.labels]},
                versions=versions(),
                seed=self.config.seed,
                method=self.config.pick.method,
                budget=self.config.budget_in_words,
                reasons=reasons(self.config.pick, survey=self.config.survey),
                unit="tokens" if self.config.keep_tokens is not None else "rows",
                original=facts["original"]["name"],
                original_digest=facts["original"]["digest"],
                variants=self.models.labels,
                states=not self.config.survey,
            )
        )


def shard_rows_of(width: int, max_length: int) -> int:
    """Rows of a shard, a power of two: as many as have 128 MiB of states, if responses are of a usual length.

    Args:
        width: Of a state, which has two bytes a number.
        max_length: Tokens of a row.
    """
    fitting = STATES_BYTES // (2 * width * min(max_length, USUAL_TOKENS))
    return min(max(1 << (fitting.bit_length() - 1 if fitting else 0), LEAST_SHARD_ROWS), SHARD_ROWS)


def title_of(source: Source) -> str:
    """The pool's name: that of its file, or of the folder of several."""
    first, number = PurePosixPath(source.files[0].uri), len(source.files)
    return first.name if number == 1 else f"{first.parent.name or first.name} ({number:,} files)"


def embedder_facts(wiring: RecoveryWiring) -> dict[str, Any]:
    """Name, digest and platform of the embedder, for a manifest."""
    own = wiring.embedder
    return {"name": own.name, "digest": own.digest, "platform": dict(own.bits)}
