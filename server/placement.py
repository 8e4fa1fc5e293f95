"""Which device a worker runs on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One worker's device. `device` is "cpu" or "cuda:<n>" as the worker's frameworks number it, `gpu_id` that n, None on the CPU.
    `visible` is what CUDA_VISIBLE_DEVICES is set to where the worker must not see the other devices (a MIG slice, a device
    named by UUID); `uuid` names the device."""

    device: str = "cpu"
    gpu_id: int | None = None
    visible: str | None = None
    uuid: str | None = None


CPU = Place()
