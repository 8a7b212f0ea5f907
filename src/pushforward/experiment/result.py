"""The result of a fit: run folder, density, numbers."""

import math
from dataclasses import dataclass
from typing import Any

from pushforward.evaluate.density import FittedDensity
from pushforward.evaluate.evaluation import EvaluationReport
from pushforward.evaluate.likelihood import with_error
from pushforward.runs.folder import RunFolder
from pushforward.runs.stop_reasons import stop_reason_in_words


@dataclass(frozen=True)
class Fit:
    """The result of a fit: run folder, density, numbers.

    Attributes:
        run: The run folder.
        density: The fitted density, in data units.
        results: The content of ``results.json``.
        report: The evaluation with baselines, samples, latents and inversion; None if there was none.
        signum: The signal that stopped the fit; None without a signal.
        note: Why the density is not the flow alone: the Gaussian was kept, or the flow was stacked; empty otherwise.
    """

    run: RunFolder
    density: FittedDensity
    results: dict[str, Any]
    report: EvaluationReport | None
    signum: int | None = None
    note: str = ""

    def lines(self) -> list[str]:
        """The result as lines of text: the numbers beside the baselines, and where the files are."""
        results = self.results
        out = []
        if self.report is not None:
            out += [*self.report.lines(), ""]
        elif math.isnan(results["test_nll"]):
            out.append(f"validation NLL {results['val_nll']:.4f} nats; there are no test rows")
        else:
            out.append(f"test NLL {with_error(results['test_nll'], results['test_nll_se'], 4)} nats")
        if "test_rows_new" in results:
            new = with_error(results["test_nll_new"], results["test_nll_new_se"], 4)
            out.append(f"new rows  NLL {new} nats on the {results['test_rows_new']:,} test rows that are not copies")
        if self.note:
            out.append(self.note)
        return out + self.closing_lines()

    def closing_lines(self) -> list[str]:
        """The last lines: how the fit ended, and where its files are."""
        results = self.results
        out = [
            f"{results['steps']:,} steps in {results['seconds']:.0f} s; {stop_reason_in_words(results['stop_reason'])}"
        ]
        out.append(f"run       {self.run.path}")
        if self.run.report.exists():
            out.append(f"report    {self.run.report}")
        for label, folder in (("pictures", self.run.pictures), ("samples", self.run.samples)):
            files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            if files:
                out.append(f"{label:<8}  {folder} ({', '.join(files)})")
        return out
