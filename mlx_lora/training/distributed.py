"""The ranks of a run: processes that share its rows, started by `mlx.launch`. Knows nothing of models or files.

With one process every function returns what it was given, and MLX's communication is never started.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_lora.errors import TrainingError

TIMEOUT_SECONDS = 300.0  # ranks wait this long for one another within a step; MLX_LORA_RANK_TIMEOUT changes it
_RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # mlx.launch (ring, JACCL), Open MPI, MPICH
_AGAIN = "start all ranks again with --resume"


class RankLostError(TrainingError):
    """Another rank ended or cannot be reached; what this rank has computed before is whole."""


@dataclass
class Group:
    """This process among the `size` processes of the run. Every rank must call the same methods in the same order."""

    rank: int = 0
    size: int = 1
    timeout_seconds: float = TIMEOUT_SECONDS
    place: str = "the start"  # where the run is, for messages

    @property
    def leads(self) -> bool:
        """Whether this rank prints and writes; the others are silent."""
        return self.rank == 0

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This rank's rows of a batch: every `size`-th, so that lengths are spread evenly. There may be none."""
        return rows if self.size == 1 else rows[self.rank :: self.size]

    def sum_arrays(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Float32 arrays summed over the ranks in one collective, computed. Raises: RankLostError."""
        if self.size == 1:
            return dict(arrays)
        flat = mx.concatenate([array.reshape(-1) for array in arrays.values()])
        mx.eval(flat)  # a fault of our own is raised here, and the timeout counts only the wait for others
        with self._waiting():
            flat = mx.distributed.all_sum(flat, stream=mx.cpu)
            # Not np.array(flat): an error inside the buffer protocol of mlx 0.32.4 hangs and holds Python's lock.
            mx.eval(flat)
        ends = np.cumsum([array.size for array in arrays.values()])[:-1].tolist()
        parts = mx.split(flat, ends)
        return {name: part.reshape(array.shape) for (name, array), part in zip(arrays.items(), parts, strict=True)}

    def sum_number(self, number: float) -> float:
        """A number summed over the ranks (in float32). Raises: RankLostError."""
        return number if self.size == 1 else float(np.array(self.sum_arrays({"number": mx.array(number)})["number"]))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank. Raises: RankLostError."""
        return self.sum_number(float(flag)) > 0

    def same(self, text: str, arrays: Mapping[str, mx.array], *, patient: bool = False) -> bool:
        """Whether all ranks hold the same text and the same arrays, to the bit; `patient` waits without a limit.

        Raises: RankLostError.
        """
        if self.size == 1:
            return True
        digest = hashlib.sha256(text.encode())
        for name, array in arrays.items():
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(np.array(array.reshape(-1).view(mx.uint8)).tobytes())
        own = np.frombuffer(digest.digest(), np.uint8).astype(np.int32)
        with self._waiting(patient=patient):
            gathered = mx.distributed.all_gather(mx.array(own)[None], stream=mx.cpu)
            mx.eval(gathered)
        return bool((np.array(gathered) == own).all())

    @contextmanager
    def _waiting(self, *, patient: bool = False) -> Iterator[None]:
        """Name MLX's error when a rank is lost; unless `patient`, end this process when nothing comes in time."""
        timer = threading.Timer(self.timeout_seconds, self._give_up)
        timer.daemon = True
        if not patient:
            timer.start()
        try:
            yield
        except RuntimeError as error:
            raise RankLostError(
                f"{self.place}: another rank ended or cannot be reached ({error})",
                f"its own message says why; {_AGAIN}",
            ) from error
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        """Runs in the timer's thread: the main thread sits in MLX, where neither a signal nor an exception ends it."""
        sys.stderr.write(
            f"error: {self.place}: rank {self.rank} has waited {self.timeout_seconds:g} s for the other ranks\n"
            f"hint: look at their hosts; the last checkpoint is whole: {_AGAIN} "
            "(MLX_LORA_RANK_TIMEOUT=<seconds> waits longer)\n"
        )
        sys.stderr.flush()
        os._exit(1)


def join_group() -> Group:
    """The ranks that `mlx.launch` or mpirun started this process with; alone when it was started by itself.

    Waits until all ranks are there. Raises: TrainingError when they cannot be reached.
    """
    launched = next((os.environ[name] for name in _RANK_VARIABLES if os.environ.get(name)), None)
    hostfile = os.environ.get("MLX_HOSTFILE")
    if launched is None or (hostfile and not Path(hostfile).read_text().strip()):  # `mlx.launch -n 1` names no hosts
        return Group()
    timeout = os.environ.get("MLX_LORA_RANK_TIMEOUT", str(TIMEOUT_SECONDS))
    try:
        timeout_seconds = float(timeout)
    except ValueError:
        raise TrainingError(f"MLX_LORA_RANK_TIMEOUT={timeout}: not a number of seconds") from None
    try:
        world = mx.distributed.init()
    except RuntimeError as error:
        raise TrainingError(
            f"rank {launched} cannot join the other ranks: {error}", "see docs/DISTRIBUTED.md"
        ) from error
    if world.size() == 1 and launched != "0":
        raise TrainingError(f"started as rank {launched}, but MLX finds no other rank", "see docs/DISTRIBUTED.md")
    return Group(world.rank(), world.size(), timeout_seconds)
