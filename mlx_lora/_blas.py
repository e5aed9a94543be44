"""A fast BLAS in front of the one that `mlx[cpu]` brings on Linux. Must run before mlx.core is imported."""

import ctypes
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path


def load_openblas() -> None:
    """Load OpenBLAS's symbols globally, so that MLX finds them first (about 80 × the float32 matmul rate; Linux only).

    A Mac has Accelerate and Metal and never needs it. Without the `cmeel-openblas` package MLX works, slowly.
    """
    if sys.platform != "linux":
        return
    openblas = _installed_file("cmeel-openblas", "libopenblas.so.0")
    if openblas is None:
        return
    if "mlx.core" in sys.modules:
        slow = "mlx.core was imported before mlx_lora: MLX keeps its slow BLAS; import mlx_lora first"
        warnings.warn(slow, RuntimeWarning, stacklevel=3)
        return
    try:
        ctypes.CDLL(str(openblas), mode=ctypes.RTLD_GLOBAL)
    except OSError:  # a machine without libgfortran.so.5
        if _load_libgfortran():
            ctypes.CDLL(str(openblas), mode=ctypes.RTLD_GLOBAL)


def _load_libgfortran() -> bool:
    """Load the Fortran runtime that the mlx-cpu wheel carries under the name that OpenBLAS asks for; False without it.

    The wheel's copy has a mangled SONAME (auditwheel), so the loader does not take it for `libgfortran.so.5`: give it
    a copy in memory that has the plain one.
    """
    for library in _installed_files("mlx-cpu", "libquadmath-"):
        ctypes.CDLL(str(library))  # what libgfortran needs itself, on x86-64
    for library in _installed_files("mlx-cpu", "libgfortran-"):
        mangled, plain = library.name.encode() + b"\0", b"libgfortran.so.5\0"
        image = library.read_bytes().replace(mangled, plain.ljust(len(mangled), b"\0"))
        descriptor = os.memfd_create("libgfortran")
        with os.fdopen(descriptor, "wb") as memory:
            memory.write(image)
            memory.flush()
            ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        return True
    return False


def _installed_file(package: str, name: str) -> Path | None:
    return next((path for path in _installed_files(package, name) if path.name == name), None)


def _installed_files(package: str, prefix: str) -> list[Path]:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name.startswith(prefix)]
