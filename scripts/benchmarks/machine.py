"""Where a run took place: processor, kernel, versions."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from rig import HERE, Server

PACKAGES = ("promptq", "arq", "redis", "hiredis", "xai-sdk", "grpcio", "pydantic")


def machine() -> dict[str, Any]:
    """Processor, cores, kernel, and how busy it was when the run began."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
    }


def versions(server: Server) -> dict[str, str]:
    """Python, the Redis server, and the packages that matter; promptq's with its commit."""
    commit = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty"],  # noqa: S607 - as it is on PATH
        capture_output=True,
        text=True,
        check=False,
    )
    found = {name: _version(name) for name in PACKAGES}
    if commit.returncode == 0:
        found["promptq"] += f" ({commit.stdout.strip()})"
    return {"Python": platform.python_version(), "Redis server": server.version(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
