"""Arrays to the device and back through pinned memory: one copy each way, none of which stops the host on the way in.

Pinned memory comes from torch's cache, which hands it out again only after the copies that use it are done; so nothing
here is kept between batches, and lanes share nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["to_device", "to_host"]


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device, copied on the current stream; on the CPU it is the array's own memory."""
    import torch

    found = torch.from_numpy(array)
    return found if device.type == "cpu" else found.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor as an array, once the current stream has computed it; waits for that stream only."""
    import torch

    if tensor.device.type == "cpu":
        return tensor.numpy()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned.numpy().copy()  # results are kept for long; pinned memory is scarce
