"""Which channels of an encoder are much wider than the others, found by letting it read a few texts.

    pruner, tokenizer -> windows of sample texts -> probe_graph in onnxruntime -> widest channels behind norms and GELU

They are the same few whatever is read, for they come from the weights. Raises `MissingExtraError` and `ModelError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from provence.onnx.graph import INPUTS, probe_graph
from provence.onnx.session import open_session

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32
    from provence.onnx.read import PlainPruner
    from provence.tokens import UnitTokenizer

__all__ = ["WIDE_CHANNELS", "wide_channels"]

WIDE_CHANNELS: Final = 16
"""Of 384 or 1,536. Of a trained pruner on all-MiniLM-L6-v2 the error of a token's keep logit, whose spread is 3.5, is
0.144 with none, 0.080 with 8, 0.073 with 16 and 0.076 with 32."""

_SAMPLES: Final = (
    (
        "When was the bridge opened?",
        """The old ferry stopped running in 1931. Two years later the bridge was opened to traffic, and the village on
the far bank grew quickly. Its market, held on Tuesdays, draws visitors from three counties.""",
    ),
    (
        "Which enzyme do the tablets inhibit?",
        """Patients (n = 48) took 20 mg of the drug twice daily. It blocks the enzyme COX-2; side effects were mild:
headache, nausea, and a rash in 3.5 % of cases. The trial ended early.""",
    ),
    (
        "how do i reset the router",
        """# Getting started\n\nHold the button for ten seconds.\n- The light turns red.\n- Release it!\n
| port | speed |\n|---|---|\n| WAN | 1 Gbit/s |\n\nSee https://example.org/help?id=42 for \u201cmore\u201d.""",
    ),
    (
        "What does the function return?",
        """def area(radius):\n    if radius < 0:\n        raise ValueError(radius)
    return 3.14159 * radius ** 2  # of a circle\n""",
    ),
)


def wide_channels(pruner: PlainPruner, tokenizer: UnitTokenizer, *, count: int = WIDE_CHANNELS) -> dict[str, list[int]]:
    """The widest channels, in ascending order, by what they leave; see `build_graph`."""
    graph, names = probe_graph(pruner)
    session = open_session(graph, name="probe")
    frame = tokenizer.frame()
    largest: dict[str, Float32] = {}
    for sample in _SAMPLES:
        question, text = tokenizer.pieces(sample)
        whole = np.concatenate([frame.prefix, question, frame.middle, text, frame.suffix])
        ids = whole[: pruner.shape.usable].astype(np.int64)[None]
        found = session.run(names, dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)))
        for name, sizes in zip(names, found, strict=True):
            largest[name] = np.maximum(largest.get(name, sizes), sizes)
    return {name: sorted(np.argsort(-sizes, kind="stable")[:count].tolist()) for name, sizes in largest.items()}
