"""Encoded images to one array, for a training that holds them all on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def decode_images(encoded: Sequence[bytes]) -> NDArray[np.uint8]:
    """Decode images of one size, uint8 (rows, height, width, 3).

    Raises:
        ItemError: An image cannot be read or is too large; holds its index.
        MetricError: There are none, or they differ in size; names the first that does.
    """
    from datapipe.workers.encoders.picture import decode

    if not encoded:
        raise MetricError("there are no images to train on")
    first = np.asarray(decode(encoded[0], index=0), np.uint8)
    found = np.empty((len(encoded), *first.shape), np.uint8)
    for index, data in enumerate(encoded):
        image = np.asarray(decode(data, index=index), np.uint8)
        if image.shape != first.shape:
            raise MetricError(
                f"image {index} has shape {image.shape}, image 0 has {first.shape}: scale them to one size first"
            )
        found[index] = image
    return found
