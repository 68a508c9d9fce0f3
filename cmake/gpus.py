"""Prints the compute capability of each NVIDIA GPU of this machine, one per line (`90`), by asking the driver.

It prints nothing where there is no driver or no GPU. It needs neither nvidia-smi nor torch.
"""

from __future__ import annotations

import ctypes

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
MAJOR, MINOR = 75, 76


def capabilities() -> list[int]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        asked = [
            driver.cuDeviceGet(ctypes.byref(device), index),
            driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device),
            driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device),
        ]
        if not any(asked):
            found.append(10 * major.value + minor.value)
    return found


if __name__ == "__main__":
    for capability in capabilities():
        print(capability)
