"""Opening a GGUF file whose lists are no longer than the file. Knows nothing of what its settings mean."""

from pathlib import Path
from typing import Any


def open_gguf(path: Path) -> Any:
    """The gguf package's reader of the file at `path`.

    Raises: ValueError for a list that is announced as longer than what is left of the file, which the package goes
    through to its announced end, entry by entry; whatever else that package raises.
    """
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):  # type: ignore[misc, unused-ignore]
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if GGUFValueType(raw_type) is GGUFValueType.ARRAY:
                kind, entries = self._get(orig_offs, "uint32")[0], int(self._get(orig_offs + 4, "uint64")[0])
                left = len(self.data) - (orig_offs + 12)
                if entries * self._least_bytes(GGUFValueType(kind)) > left:
                    raise ValueError(f"it announces {entries} entries of a list, more than it has bytes for")
            return super()._get_field_parts(orig_offs, raw_type)

        def _least_bytes(self, kind: GGUFValueType) -> int:
            """Of one entry: a text begins with its length, a list with the kind of its entries and their number."""
            if kind in (GGUFValueType.STRING, GGUFValueType.ARRAY):
                return 8 if kind is GGUFValueType.STRING else 12
            scalar = self.gguf_scalar_to_np.get(kind)
            return 1 if scalar is None else int(scalar(0).nbytes)

    return Reader(path)
