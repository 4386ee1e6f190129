r"""What loses a hidden token: noise on the visible activations, and rounded weights.

    python benchmarks/noise.py RESULTS TEXT docs/evidence/noise.csv \\
        --cells flat/1 transformer/1 smollm2/1
    python benchmarks/noise.py RESULTS TEXT docs/evidence/quantisation.csv \\
        --cells smollm2/1 smollm2-int8/1 smollm2-nf4/1

RESULTS is the results directory of `benchmarks/study.yaml`, TEXT a file of real prose. For each
cell the first hidden position is swept around the true prompt: how often it is identifiable, by
what margin over what noise floor, and the noise-to-signal ratio at which the true token stops
being the best explanation (median and quartiles over prompts).
"""

from __future__ import annotations

import time

import torch
from cells import chosen, parser
from common import write
from exact import pose

from tokinfo.solvers import sweep
from tokinfo.study.solvers import NoiseSettings, SweepSolver


def main() -> None:
    """Sweep every cell and write the table after each."""
    arguments = parser(__doc__, ["flat/1", "transformer/1", "smollm2/1"], prompts=6)
    arguments.add_argument("--hidden", type=int, default=1, help="leading positions hidden")
    options = arguments.parse_args()
    rows: list[dict[str, object]] = []
    for cell in chosen(options):
        mask = f"{options.hidden}:"
        problem, truth = pose(options.results, cell.model, cell.block, cell.prompts, mask)
        begun = time.perf_counter()
        result = sweep.solve(problem, SweepSolver(first=1, noise=NoiseSettings()), truth)
        spent = time.perf_counter() - begun
        found = [judged for row in result.identified or [] for judged in row.values()]
        margins = torch.tensor([judged.margin for judged in found], dtype=torch.float64)
        levels = torch.tensor(
            [judged.noise_threshold or 0.0 for judged in found], dtype=torch.float64
        )
        floor = problem.floor.double()
        low, middle, high = levels.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=levels.dtype))
        rows.append(
            {
                "model": cell.model,
                "block": cell.block,
                "quantization": cell.checkpoint.facts.quantization,
                "state": cell.checkpoint.facts.state,
                "hidden_leading": options.hidden,
                "swept": len(found),
                "identifiable": sum(judged.verdict == "identifiable" for judged in found),
                "rank_one": sum(judged.rank == 1 for judged in found),
                "floor_median": float(floor.median()),
                "margin_median": float(margins.median()),
                "margin_least": float(margins.min()),
                "margin_over_floor_least": float((margins / floor).min()),
                "noise_threshold_quarter": float(low),
                "noise_threshold_median": float(middle),
                "noise_threshold_three_quarters": float(high),
                "bits_least": min(judged.bits_low for judged in found),
                "seconds_per_sweep": round(spent / len(found), 3),
            }
        )
        write(options.out, rows)


if __name__ == "__main__":
    main()
