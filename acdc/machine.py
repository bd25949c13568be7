"""What measured times and memory depend on: the machine, and the most memory that was in use."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux only


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


def peak_memory(device: str = "cpu") -> float:
    """GiB, the most that this process has had in use, since `reset_peak_memory` where that works.

    On a GPU, its memory that PyTorch took; else the whole process's, model and libraries included. What is freed may
    stay with the process, and counts.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if STATUS.exists():  # getrusage's maximum would count the parent process, too
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # macOS: bytes


def reset_peak_memory(device: str = "cpu") -> bool:
    """Counts anew from what is in use now. Whether that worked: not on the CPU of systems other than Linux."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if not os.access(RESET, os.W_OK):
        return False
    RESET.write_text("5")  # see proc(5): resets the peak resident set size
    return True


def memory_in_use() -> int:
    """Bytes that this process has in memory now; on systems other than Linux the most that it had."""
    if STATUS.exists():
        return int(STATUS.read_text().split("VmRSS:")[1].split()[0]) * 2**10
    return round(peak_memory() * 2**30)
