"""How the cost of a training step grows with rows, tokens a row and trained layers: ours against mlx-lm's own trainer.

    python benchmarks/growth.py --json > growth.json
    python benchmarks/growth.py --plot growth.svg growth.json      # needs matplotlib, which the project does not

Random rows that share nothing, so that neither the shared prefix nor the grouping helps: what is left is the head, the
frozen layers and the compiled step. Each point is a process of its own a side (benchmarks/train.py --work rows-8, …).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from works import GROWTH

TRAIN = Path(__file__).resolve().with_name("train.py")
SIDES = {"ours": "mlx-lora", "mlx_lm": "mlx-lm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=list(GROWTH), action="append", help="only this one")
    parser.add_argument("--turns", type=int, default=1, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", metavar="PICTURE", help="draw what --json printed earlier")
    parser.add_argument("figures", nargs="*", help="files that --json printed, with --plot")
    options = parser.parse_args()
    if options.plot:
        found: dict[str, Any] = {}
        for path in options.figures:
            found |= json.loads(Path(path).read_text())
        _plot(found, options.plot)
        return
    found = {axis: [_point(axis, value, options.turns) for value in GROWTH[axis]] for axis in options.axis or GROWTH}
    if options.json:
        print(json.dumps(found))
        return
    for axis, points in found.items():
        for point in points:
            print(f"{axis:7} {point['at']:4}  {point['rows_per_second_ratio']:.2f} x mlx-lm's rows/s")


def _point(axis: str, value: int, turns: int) -> dict[str, Any]:
    command = [sys.executable, str(TRAIN), "--work", f"{axis}-{value}", "--turns", str(turns), "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"at": value, **json.loads(output.splitlines()[-1])}


def _plot(found: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same bytes from the same figures
    import matplotlib.pyplot as plt

    figure, places = plt.subplots(2, len(found), figsize=(4 * len(found), 6), sharex="col", layout="constrained")
    for column, (axis, points) in zip(places.T, found.items(), strict=True):
        at = [point["at"] for point in points]
        for side, name in SIDES.items():
            column[0].plot(at, [point[side]["seconds_per_step"] for point in points], marker="o", label=name)
            column[1].plot(at, [point[side]["peak_bytes"] / 1e9 for point in points], marker="o", label=name)
        column[1].set_xlabel({"rows": "rows a step", "tokens": "tokens a row", "layers": "trained layers of 30"}[axis])
        for place in column:
            place.set_ylim(bottom=0)
            place.grid(alpha=0.3)
    places[0][0].set_ylabel("seconds a step")
    places[1][0].set_ylabel("peak MLX memory, GB")
    places[0][0].legend()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


if __name__ == "__main__":
    main()
