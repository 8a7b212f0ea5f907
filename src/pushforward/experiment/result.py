"""The result of a fit: run folder, density, numbers."""

from dataclasses import dataclass
from typing import Any

from pushforward.evaluate.density import FittedDensity
from pushforward.runs.folder import RunFolder
from pushforward.runs.stop_reasons import stop_reason_in_words
from pushforward.train.problems.base import Evaluation


@dataclass(frozen=True)
class Fit:
    """The result of a fit: run folder, density, numbers.

    Attributes:
        run: The run folder.
        density: The fitted density, in data units.
        results: The content of ``results.json``.
        evaluation: The evaluation; None if there was none.
        numbers: The numbers as lines of text.
        signum: The signal that stopped the fit; None without a signal.
        note: Why the density is not the flow alone: the Gaussian was kept, or the flow was stacked; empty otherwise.
    """

    run: RunFolder
    density: FittedDensity
    results: dict[str, Any]
    evaluation: Evaluation | None
    numbers: tuple[str, ...] = ()
    signum: int | None = None
    note: str = ""

    def lines(self) -> list[str]:
        """The result as lines of text: the numbers beside the baselines, how the fit ended, where the files are."""
        results = self.results
        out = [*self.numbers, *([self.note] if self.note else [])]
        stop = stop_reason_in_words(results["stop_reason"])
        out.append(f"{results['steps']:,} steps in {results['seconds']:.0f} s; {stop}")
        out.append(f"run       {self.run.path}")
        if self.run.report.exists():
            out.append(f"report    {self.run.report}")
        for label, folder in (("pictures", self.run.pictures), ("samples", self.run.samples)):
            files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            if files:
                out.append(f"{label:<8}  {folder} ({', '.join(files)})")
        return out
