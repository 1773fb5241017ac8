"""What `jrm analyze` and `jrm sweep` measured of the demo, as rows and pictures for the docs.

    jrm demo --compare
    OMP_NUM_THREADS=1 jrm analyze --models demo-output/model demo-output/baseline --data demo-output/data/heldout.json
    OMP_NUM_THREADS=1 jrm sweep --config examples/sweep/shape_edits.yaml
    python -m benchmarks.demo_figures --analysis analysis-output --sweep sweep-output

Nothing is computed here: the numbers are those of the two `results.json`.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.measuring import device_description, versions, write_csv

RESULTS = Path(__file__).parent / "results"
PANELS = ("spectrum_raw", "measures_raw", "projection", "cosines")
ATTENTION = ("1_1", "1_1_model_1", "1_1_model_2", "2_1", "2_1_model_1", "2_1_model_2")
CURVES = ("rank_loss", "critique_loss", "loss", "grad_norm")


def rows_of(results: Mapping, where: tuple[str, ...] = ()) -> Iterator[dict]:
    """A row for each value that has an interval, with the keys that lead to it."""
    for key, value in results.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            of_seeds = [("", value), *((seed, {"value": of_seed}) for seed, of_seed in value.get("seeds", {}).items())]
            for seed, found in of_seeds:
                numbers = {name: found.get(name) for name in ("value", "low", "high", "n")}
                yield {"what": "/".join((*where, key)), "seed": seed} | numbers
        elif isinstance(value, Mapping):
            yield from rows_of(value, (*where, key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--analysis", type=Path, default=Path("analysis-output"))
    parser.add_argument("--sweep", type=Path, default=Path("sweep-output"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    pictures = {f"charts/{name}.png": f"analysis-{name}.png" for name in PANELS}
    pictures |= {f"attention/{name}.png": f"analysis-attention-{name}.png" for name in ATTENTION}
    found = {"analysis": (options.analysis, pictures)}
    charts = ["accuracy_1.png", *(f"training_{name}.png" for name in CURVES)]
    found["sweep"] = (options.sweep, {f"charts/{name}": f"sweep-{name}" for name in charts})
    for name, (folder, pictures) in found.items():
        results = json.loads((folder / "results.json").read_text())
        rows = [row | {"device": device_description()} | versions() for row in rows_of(results)]
        write_csv(options.output / f"{name}.csv", rows)
        for source, target in pictures.items():
            shutil.copy(folder / source, options.output / target)
        print(f"wrote {options.output / name}.csv and {len(pictures)} pictures")


if __name__ == "__main__":
    main()
