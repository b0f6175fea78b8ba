"""How far one damaged version of the model is from the original on every response.

Reads `pool/rows` and `states`, shard by shard. Writes row_id, tokens and prompt_tokens (scored tokens of the response,
tokens that the model sees before them) and the numbers of `datapipe.paser.rows`, float32 and in nats, in the order of
the rows. Of a response without tokens the means are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datapipe.stages.states import ModelStage, ReadConfig, form_of, responses_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.paser.bodies import Form, Responses
    from datapipe.paser.heads import Heads
    from datapipe.paser.models import Models
    from datapipe.pipeline import ShardFunction, StageOutput, Tick
    from datapipe.workers.protocol import Worker

__all__ = ["Damage", "compared", "damage_schema"]


def damage_schema() -> pa.Schema:
    """Columns of the damage of rows."""
    import pyarrow as pa

    from datapipe.paser.rows import ROW_NUMBERS
    from datapipe.storage.rowid import ID_TYPE

    return pa.schema(
        [
            pa.field("row_id", ID_TYPE, nullable=False),
            pa.field("tokens", pa.int32()),
            pa.field("prompt_tokens", pa.int32()),
            *(pa.field(name, pa.float32()) for name in ROW_NUMBERS),
        ]
    )


@dataclass(frozen=True)
class Damage(ModelStage):
    """Run the body of one damaged version, and both heads.

    Attributes:
        label: Its name at the worker; part of the stage's name.
    """

    version: ClassVar[int] = 1

    label: str

    @classmethod
    def of(cls, models: Models, label: str) -> Self:
        """The stage for one of the models' labels."""
        return cls(models, ReadConfig.of(models), label)

    @property
    def name(self) -> str:
        """`damage_LABEL`."""
        return f"damage_{self.label}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, and the original's states."""
        return ("pool/rows", "states")

    @property
    def models(self) -> tuple[str, ...]:
        """Original and damaged version."""
        from datapipe.paser.models import ORIGINAL

        return (self.run_by.digest(ORIGINAL), self.run_by.digest(self.label))

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Load both."""
        heads, worker = self.run_by.heads(self.label), self.run_by.worker
        form = form_of(self.run_by, self.settings)

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            return self._measure(worker, heads, form, tables, tick)

        return function

    def _measure(
        self, worker: Worker, heads: Heads, form: Form, tables: Sequence[pa.Table], tick: Tick
    ) -> tuple[pa.Table, dict[str, Any]]:
        import pyarrow as pa

        from datapipe.paser.bodies import read_responses

        rows, states = tables
        parts, tokens = [damage_schema().empty_table()], 0
        for start in range(0, rows.num_rows, form.slice_rows):
            part = rows.slice(start, form.slice_rows)
            one = responses_of(states.slice(start, form.slice_rows), dim=heads.dims[0])
            other = read_responses(worker, self.label, form.of(part), dim=heads.dims[1])
            parts.append(compared(part, one, other, heads=heads, form=form, names=("original", self.label)))
            tokens += len(one.ids)
            tick(part.num_rows)
        return pa.concat_tables(parts).combine_chunks(), {"tokens": tokens}


def compared(
    rows: pa.Table, one: Responses, other: Responses, *, heads: Heads, form: Form, names: tuple[str, str]
) -> pa.Table:
    """The damage of some rows, as `damage_schema`.

    Args:
        rows: With their row_id.
        one: What the original says of them.
        other: What the damaged version says.
        heads: Of both.
        form: How they were read.
        names: Of both.

    Raises:
        ModelError: The two cut a response into different tokens, or a divergence is not finite.
    """
    import pyarrow as pa

    from datapipe.paser.bodies import refuse_other_cut
    from datapipe.paser.rows import row_numbers
    from datapipe.storage.rowid import ids_from_arrow, ids_to_hex

    refuse_other_cut(one, other, names=names, rows=lambda: ids_to_hex(ids_from_arrow(rows["row_id"])))
    found = row_numbers(heads.compare(one.states, other.states, one.ids), one.sizes)
    columns = [
        rows["row_id"].combine_chunks(),
        pa.array(one.sizes, pa.int32()),
        pa.array(one.prompt(form.max_length)),
        *(pa.array(values) for values in found.values()),
    ]
    return pa.Table.from_arrays(columns, schema=damage_schema())
