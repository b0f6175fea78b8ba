"""Which channels of an encoder are much wider than the others, found by letting it read a few texts.

    pruner, tokenizer -> windows of sample texts -> probe_graph in onnxruntime -> the widest channels of each norm

They are the same few whatever is read, for they come from the weights. Raises `MissingExtraError` and `ModelError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from provence.onnx.graph import INPUTS, probe_graph
from provence.onnx.session import open_session

if TYPE_CHECKING:
    from provence.onnx.read import PlainPruner
    from provence.tokens import UnitTokenizer

__all__ = ["WIDE_CHANNELS", "wide_channels"]

WIDE_CHANNELS: Final = 8
"""More gain little: with 4 the error of all-MiniLM-L6-v2's states is 2.8 %, with 8 2.7 %, with 12 2.5 %."""

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
    """The widest channels of each norm's output, in ascending order, by the norm's name."""
    graph, norms = probe_graph(pruner)
    session = open_session(graph, name="probe")
    frame = tokenizer.frame()
    most = pruner.shape.usable
    largest = np.zeros((len(norms), pruner.shape.dim), np.float32)
    for sample in _SAMPLES:
        question, text = tokenizer.pieces(sample)
        ids = np.concatenate([frame.prefix, question, frame.middle, text, frame.suffix])[:most].astype(np.int64)[None]
        found = session.run(norms, dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True)))
        largest = np.maximum(largest, np.stack(found))
    return {
        norm: sorted(np.argsort(-row, kind="stable")[:count].tolist()) for norm, row in zip(norms, largest, strict=True)
    }
