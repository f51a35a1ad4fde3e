"""How much memory is free on a device, within the limits of a container."""

import os
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where that cannot be told."""
    if device.type == "cuda":  # what torch holds in reserve is free for what comes
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # no Linux: what is there at all
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return None
    left = _cgroup_free()
    return available if left is None else min(available, left)


def _cgroup_free() -> int | None:
    """What a container's limit leaves; None without one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        files = int(counts["inactive_file"]) + int(counts["active_file"])  # kept as long as nobody needs the room
        return None if limit == "max" else max(0, int(limit) - used + files)
    except (OSError, ValueError, KeyError):
        return None


def gigabytes(n_bytes: int) -> str:
    """`2.5 GB`, decimal ones."""
    return f"{n_bytes / 1e9:,.1f} GB"
