"""What measured times and memory depend on: the machine, and the most memory that was in use."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

STATUS, RESET, MEMORY, GROUPS = (Path("/proc") / name for name in (
    "self/status", "self/clear_refs", "meminfo", "self/cgroup"))  # Linux only
LIMITS = Path("/sys/fs/cgroup")


def machine() -> dict[str, Any]:
    """Processor, cores, threads, load (the number of processes that want a core), versions."""
    info = Path("/proc/cpuinfo")  # Linux only; elsewhere Python's own idea of the processor
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
        "python": platform.python_version(),
    }


def counts_memory(device: str | torch.device) -> Any:
    """PyTorch's module of a device that counts the memory that it takes there; None for the CPU."""
    module = torch.get_device_module(torch.device(device).type)
    return module if hasattr(module, "max_memory_allocated") else None


def peak_memory(device: str | torch.device = "cpu") -> float:
    """GiB, the most that this process has had in use, since `reset_peak_memory` where that works.

    On a GPU, its memory that PyTorch took; else the whole process's, model and libraries included. What is freed may
    stay with the process, and counts.
    """
    counter = counts_memory(device)
    if counter is not None:
        return counter.max_memory_allocated(device) / 2**30
    if STATUS.exists():  # getrusage's maximum would count the parent process, too
        return _status("VmHWM")
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # macOS: bytes


def _status(key: str) -> float:
    """GiB."""
    return int(STATUS.read_text().split(f"{key}:")[1].split()[0]) / 2**20


def reset_peak_memory(device: str | torch.device = "cpu") -> bool:
    """Counts anew from what is in use now. Whether that worked: not on the CPU of systems other than Linux."""
    counter = counts_memory(device)
    if counter is not None:
        counter.reset_peak_memory_stats(device)
        return True
    if not os.access(RESET, os.W_OK):
        return False
    RESET.write_text("5")  # see proc(5): resets the peak resident set size
    return True


def memory_now(device: str | torch.device = "cpu") -> float:
    """GiB in use, counted as `peak_memory` does; where only a maximum is known, that."""
    counter = counts_memory(device)
    if counter is not None:
        return counter.memory_allocated(device) / 2**30
    return _status("VmRSS") if STATUS.exists() else peak_memory(device)


def free_memory(device: str | torch.device = "cpu") -> float:
    """GiB that can still be had, by what is free on the device and by the limits of this process (`ulimit -v`, control
    groups such as those of batch systems and containers); infinite where that is not known."""
    counter = counts_memory(device)
    if counter is not None:
        return counter.mem_get_info(device)[0] / 2**30 if hasattr(counter, "mem_get_info") else float("inf")
    if not MEMORY.exists():
        return float("inf")
    free = int(MEMORY.read_text().split("MemAvailable:")[1].split()[0]) / 2**20
    return max(0.0, min([free, *_room_of_process(), *_room_of_groups()]))


def _room_of_process() -> Iterator[float]:
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit / 2**30 - _status("VmSize")


def _room_of_groups() -> Iterator[float]:
    """What is left to the control groups of this process and to those around them; files in memory can be given up."""
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else ():
        _, kinds, path = line.split(":", 2)
        root, most, used, idle = (LIMITS, "memory.max", "memory.current", "inactive_file") if not kinds else (
            LIMITS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if kinds and "memory" not in kinds.split(","):
            continue
        inner = root / path.lstrip("/")
        for group in (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)):
            with suppress(OSError, ValueError, IndexError):  # without a limit, or not to be seen from here
                files = int((group / "memory.stat").read_text().split(f"{idle} ")[1].split()[0])
                yield (int((group / most).read_text()) - int((group / used).read_text()) + files) / 2**30
