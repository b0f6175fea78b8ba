"""How hard every response is for a damaged model that does not see what was asked.

Reads `pool/rows`, shard by shard. Writes row_id and nll_alone, float32, in the order of the rows: the mean negative log
probability of the response's tokens in nats without prompt or template; NaN for a response without tokens. With `nll_p`
of the damage it makes the instruction-following difficulty exp(nll_p - nll_alone) (IFD, Li et al. 2023, arXiv
2308.12032, equation 3). The response follows the beginning-of-text token, so that its first token counts as well; a
tokenizer without one leaves that token out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datapipe.stages.states import ModelStage, ReadConfig, form_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.paser.bodies import Form
    from datapipe.paser.models import Models
    from datapipe.pipeline import ShardFunction, StageOutput, Tick

__all__ = ["Alone"]


@dataclass(frozen=True)
class Alone(ModelStage):
    """Run one damaged version over the responses.

    Attributes:
        label: Its name at the worker.
    """

    name: ClassVar[str] = "alone"
    version: ClassVar[int] = 1

    label: str

    @classmethod
    def of(cls, models: Models, label: str) -> Self:
        """The stage for one of the models' labels."""
        return cls(models, ReadConfig.of(models), label)

    @property
    def models(self) -> tuple[str, ...]:
        """The damaged version."""
        return (self.run_by.digest(self.label),)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Load the model."""
        form = form_of(self.run_by, self.settings)
        self.run_by.load(self.label)

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            return self._read(form, tables[0], tick)

        return function

    def _read(self, form: Form, rows: pa.Table, tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
        import numpy as np
        import pyarrow as pa

        from datapipe.paser.bodies import ask

        before = "" if len(self.run_by.tokenizer.opening) else self.run_by.chat.special.get("bos_token", "")
        found = np.full(rows.num_rows, np.nan, np.float32)
        for start in range(0, rows.num_rows, form.slice_rows):
            texts = [(before, text) for text in rows["response"].slice(start, form.slice_rows).to_pylist()]
            for place, each in enumerate(ask(self.run_by.worker, self.label, texts, hidden=False), start):
                if each is not None and len(each.log_probabilities):
                    found[place] = -each.log_probabilities.mean(dtype=np.float64)
            tick(len(texts))
        return pa.table({"row_id": rows["row_id"], "nll_alone": pa.array(found)}), {}
