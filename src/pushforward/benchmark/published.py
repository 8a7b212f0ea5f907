"""Published numbers for the suites, each with its source and the kind of its error bar.

Error bars of the literature are of different kinds and cannot be compared: MAF and NSF give twice the standard error
over the test rows of a single run, FFJORD and NAF the spread of repeated runs. Numbers written down from memory are
marked; check them before quoting.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

ErrorBar = Literal["rows-2se", "runs", "seeds", "runs-2se", "unknown", "none"]
Evidence = Literal["source", "memory"]

ERROR_BARS: Mapping[ErrorBar, str] = {
    "rows-2se": "2 standard errors over the test rows of a single run",
    "runs": "across repeated runs; whether a standard deviation or a standard error is not known here",
    "seeds": "across 5 seeds; whether a standard deviation or a standard error is not known here",
    "runs-2se": "2 standard errors over 5 runs (5 random halves)",
    "unknown": "of a kind that is not known here",
    "none": "no error bar is known here",
}
"""Meaning of the number after the ±, by kind of error bar."""

EVIDENCE: Mapping[Evidence, str] = {
    "source": "read in a source",
    "memory": "written down from memory, not checked",
}
"""How a number was obtained."""

_NUMBER = re.compile(r"(?P<about>~?)(?P<value>-?\d*\.?\d+)(?:±(?P<error>\d*\.?\d+))?(?P<doubt>\*?)")


class Figure(NamedTuple):
    """One published number.

    Attributes:
        value: In the score of the suite: a log-likelihood or an NLL, in nats.
        error: The number after the ±; None if there is none.
        decimals: Number of published decimals.
        is_about: Whether the number is approximate.
        is_doubted: Whether the note of its row gives a reason to doubt it.
    """

    value: float
    error: float | None = None
    decimals: int = 2
    is_about: bool = False
    is_doubted: bool = False


@dataclass(frozen=True)
class Published:
    """The published numbers of a method.

    Attributes:
        method: Name of the method in a table.
        year: Year of the paper; None if unknown.
        figures: Numbers by data set.
        source: Source of the numbers.
        evidence: Whether they were read there or written down from memory.
        error_bar: Kind of the error bars; ``none`` if there are none.
        note: A note for the reader.
    """

    method: str
    year: int | None
    figures: Mapping[str, Figure]
    source: str
    evidence: Evidence
    error_bar: ErrorBar
    note: str = ""

    @property
    def label(self) -> str:
        """The method with its year."""
        return self.method if self.year is None else f"{self.method} {self.year}"

    def se(self, name: str) -> float | None:
        """Return the standard error of a number; None unless its error bar is a known multiple of it."""
        error = self.figures[name].error
        return error / 2 if error is not None and self.error_bar in ("rows-2se", "runs-2se") else None


class _Table:
    """Builds the rows of a table; numbers are in the order of the data sets, ``-`` if there is none."""

    def __init__(self, sets: Sequence[str]) -> None:
        self.sets = sets
        self.rows: list[Published] = []

    def add(
        self,
        method: str,
        year: int | None,
        numbers: str,
        error_bar: ErrorBar,
        evidence: Evidence,
        source: str,
        note: str = "",
    ) -> None:
        figures = {}
        for name, text in zip(self.sets, numbers.split(), strict=True):
            if text == "-":
                continue
            match = _NUMBER.fullmatch(text)
            if match is None:
                raise ValueError(f"published: expected numbers such as -1.2±.3; got {text!r} for {method}")
            error = None if match["error"] is None else float(match["error"])
            decimals = len(match["value"].partition(".")[2])
            figures[name] = Figure(float(match["value"]), error, decimals, bool(match["about"]), bool(match["doubt"]))
        self.rows.append(Published(method, year, figures, source, evidence, error_bar, note))


_TAN_README = "README of lupalab/tan"
_NSF = "Neural Spline Flows paper (error bars as its code, bayesiains/nsf, computes them)"
_PAPER = "the method's paper, or a source that quotes it"
_SPIKES = (
    "a model that can place spikes gains without bound on POWER, whose last column gets no noise; "
    "this number is out of line with all exact densities"
)


def _literature() -> tuple[Published, ...]:
    table = _Table(("power", "gas", "hepmass", "miniboone", "bsds300"))
    add = table.add
    maf, re_run = f"MAF paper, as quoted in the {_TAN_README}", f"re-run by the {_NSF}"
    add("Gaussian", 2017, "-7.74±.02 -3.58±.75 -27.93±.02 -37.24±1.07 96.67±.25", "rows-2se", "memory", "MAF paper")
    add("MADE", 2015, "-3.08±.03 3.56±.04 -20.98±.02 -15.59±.50 148.85±.28", "rows-2se", "source", maf)
    add("MADE-MoG", None, "0.40±.01 8.47±.02 -15.15±.02 -12.27±.47 153.71±.28", "rows-2se", "source", maf)
    add("RealNVP(5)", None, "-0.02±.01 4.78±1.80 -19.62±.02 -13.55±.49 152.97±.28", "rows-2se", "source", maf)
    add("RealNVP(10)", None, "0.17±.01 8.33±.14 -18.71±.02 -13.84±.52 153.28±1.78", "rows-2se", "source", maf)
    add("Glow, in FFJORD", 2019, "0.17 8.15 -18.92 -11.35 155.07", "none", "source", "FFJORD paper")
    add("Glow, in NSF", 2019, "0.42±.01 12.24±.03 -16.99±.02 -10.55±.45 156.95±.28", "rows-2se", "source", re_run,
        "ResNet and LU layers")  # fmt: skip
    add("MAF(5)", 2017, "0.14±.01 9.07±.02 -17.70±.02 -11.75±.44 155.69±.28", "rows-2se", "source", maf)
    add("MAF(10)", 2017, "0.24±.01 10.08±.02 -17.73±.02 -12.24±.45 154.93±.28", "rows-2se", "source", maf)
    add("MAF-MoG(5)", 2017, "0.30±.01 9.59±.02 -17.39±.02 -11.68±.44 156.36±.28", "rows-2se", "source", maf)
    add("MAF, in NSF", 2019, "0.45±.01 12.35±.02 -17.03±.02 -10.92±.46 156.95±.28", "rows-2se", "source", re_run,
        "ResMADE and LU layers, 10 steps")  # fmt: skip
    add("MAF, in SSTM", 2026, "0.454±.011 11.957±.033 -17.058±.250 -10.314±.100 -", "seeds", "source",
        "re-run by the SSTM paper")  # fmt: skip
    add("TAN", 2018, "0.60±.01 12.06±.02 -13.78±.02 -11.01±.48 159.80±.07", "unknown", "source", _TAN_README,
        "the authors ask to cite these and not the older 0.48, 11.19, -15.12, -11.01, 157.03")  # fmt: skip
    add("NAF-DDSF(5)", 2018, "0.62±.01 11.91±.13 -15.09±.40 -8.86±.15 157.73±.04", "runs", "source", _TAN_README)
    add("NAF-DDSF(10)", 2018, "0.60±.02 11.96±.33 -15.32±.23 -9.01±.01 157.43±.30", "runs", "source", _TAN_README)
    add("FFJORD", 2019, "0.46±.01 8.59±.12 -14.92±.08 -10.43±.04 157.40±.19", "runs", "source", _PAPER)
    add("SOS", 2019, "0.60±.01 11.99±.41 -15.15±.10 -8.90±.11 157.48±.41", "runs", "source", _TAN_README)
    add("B-NAF", 2019, "0.61±.01 12.06±.09 -14.71±.38 -8.95±.07 157.36±.03", "runs", "source", _PAPER)
    add("UMNN-MAF", 2019, "0.63±.01 10.89±.70 -13.99±.21 -9.67±.13 157.98±.01", "unknown", "memory", _PAPER)
    add("ResMADE-MoG, in AEM", 2019, "0.60±.01 12.80±.01 -13.40±.01 -11.01±.23 157.41±.14", "unknown", "memory",
        "AEM paper", "the proposal of AEM")  # fmt: skip
    add("AEM", 2019, "0.70±.01 13.03±.01 -12.85±.01 -10.17±.26 158.71±.14", "unknown", "memory", "AEM paper",
        "not a flow; its normaliser is estimated by importance sampling")  # fmt: skip
    add("Cubic-spline flow (C)", 2019, "0.65±.01 13.14±.02 -14.59±.02 -9.06±.44 157.24±.28", "unknown", "memory",
        _PAPER)  # fmt: skip
    add("Q-NSF (C)", 2019, "0.64±.01 12.80±.02 -15.35±.02 -9.35±.44 157.65±.28", "rows-2se", "source", _NSF)
    add("RQ-NSF (C)", 2019, "0.64±.01 13.09±.02 -14.75±.03 -9.67±.47 157.54±.28", "rows-2se", "source", _NSF)
    add("Q-NSF (AR)", 2019, "0.66±.01 12.91±.02 -14.67±.03 -9.72±.47 157.42±.28", "rows-2se", "source", _NSF)
    add("RQ-NSF (AR)", 2019, "0.66±.01 13.09±.02 -14.01±.03 -9.22±.48 157.31±.28", "rows-2se", "source", _NSF)
    add("RQ-NSF (AR), in SSTM", 2026, "0.650±.003 13.031±.023 -14.268±.262 -10.300±.089 -", "seeds", "source",
        "re-run by the SSTM paper", "with the published hyper-parameters: what a reproduction may expect")  # fmt: skip
    add("LRS (C)", 2020, "0.65±.01 12.99±.02 -14.64±.03 -9.65±.48 157.70±.28", "unknown", "memory", _PAPER)
    add("LRS (AR)", 2020, "0.66±.01 13.07±.02 -13.80±.03 -9.77±.55 158.39±.28", "unknown", "memory", _PAPER)
    add("LGF-MAF / CIF-MAF 2019/20", None, "0.48±.01 12.02±.10 -16.63±.09 -9.93±.04 -", "unknown", "source", _PAPER)
    add("CIF-NSF", 2020, "0.68±.01 13.08±.00 -13.83±.10 -9.93±.06 -", "unknown", "memory", _PAPER,
        "an importance-sampled estimate")  # fmt: skip
    add("Gaussianization Flow", 2020, "0.57 10.13 -17.59 -10.32 152.82", "none", "memory", _PAPER)
    add("CP-Flow", 2021, "0.52±.01 10.36±.03 -16.93±.08 -10.58±.07 154.99±.08", "unknown", "memory", _PAPER)
    add("OT-Flow", 2021, "0.30 9.20 -17.32 -10.55 154.20", "none", "memory", _PAPER)
    add("GNF", 2021, "0.62±.04 10.15±.15 -14.17±.13 -16.23±.52 -", "unknown", "source", _PAPER)
    add("ResFlow (L=10)", 2021, "0.26 6.20 -18.91 -21.81 104.63", "none", "source", _PAPER, "small budget")
    add("ImpFlow (L=5)", 2021, "0.30 6.94 -18.52 -21.50 113.72", "none", "source", _PAPER, "small budget")
    add("ACE", 2021, "0.576 12.201 -15.041 -11.407 156.400", "none", "source", _PAPER,
        "an energy model for arbitrary conditionals")  # fmt: skip
    add("TraDE", 2020, "0.73±.00 13.27±.01 -12.01±.03 -9.49±.13 160.01±.02", "unknown", "source", _PAPER,
        "an autoregressive transformer with mixtures, not a flow; the values were read, their error bars are from "
        "memory")  # fmt: skip
    add("DEformer", None, "0.541 13.167 -11.983 -9.323 157.035", "none", "source", "a re-implementation in JAX",
        "an order-agnostic autoregressive transformer, not a flow")  # fmt: skip
    add("DiffFlow (ODE)", 2021, "1.04* 10.45 -15.04 -8.06* 157.80", "none", "source", _PAPER,
        f"a discretised ODE of at most a few dozen steps; {_SPIKES}")  # fmt: skip
    add("Stochastic interpolants", 2023, "0.57 12.35 -14.85 -10.42 156.22", "none", "memory", _PAPER)
    cfm = "a workshop paper of 2024, 10,000 steps, signs flipped"
    add("CFM", 2024, "-.164 5.00 -22.1 -14.2 129", "none", "source", cfm)
    add("OT-CFM", 2024, "-.052 5.48 -21.6 -14.3 132", "none", "source", cfm)
    add("ExFM", 2024, ".085 5.53 -21.6 -13.4 129", "none", "source", cfm)
    add("TTDE", 2021, "0.46 8.93 -21.34 -28.77 143.30", "none", "memory", _PAPER)
    add("MDMA", 2021, "0.57 8.92 -20.8 -29.0 -", "none", "memory", _PAPER)
    add("nMDMA", 2021, "1.78* 8.43 -18.0 -18.6 -", "none", "memory", _PAPER, _SPIKES)
    add("NPC2 circuits, best", 2024, "~0.62 ~10.98 ~-20.4 ~-26.7 ~128", "none", "memory", _PAPER)
    add("SSTM triangular map", 2026, "0.527±.020 10.854±.039 -16.153±.312 -9.925±.137 -", "unknown", "source",
        "SSTM paper")  # fmt: skip
    again = "re-implementation in PyTorch by kamenbliznashki, 50 epochs"
    add("MADE-MoG, PyTorch", None, ".37 8.08 -15.70 -11.64 153.56", "none", "source", again)
    add("MAF(5), PyTorch", None, ".03 6.23 -17.97 -11.57 153.53", "none", "source", again)
    add("MAF-MoG(5), PyTorch", None, ".09 7.96 -17.29 -11.27 153.35", "none", "source", again)
    return tuple(table.rows)


def _rnade() -> tuple[Published, ...]:
    table = _Table(("red-wine", "white-wine", "parkinsons-telemonitoring", "ionosphere", "housing"))
    paper = "Uria, Murray and Larochelle 2013, means over 10 folds"
    for method, numbers in {
        "Gaussian": "-13.18 -13.20 -10.85 -41.24 -11.37",
        "MFA": "-10.19 -10.73 -1.99 -17.55 -4.54",
        "FVBN": "-11.03 -10.52 -0.71 -26.55 -3.41",
        "RNADE-MoG": "-9.36 -10.23 -0.90 -2.50 -0.64",
        "RNADE-MoL": "-9.46 -10.38 -2.63 -5.87 -4.04",
    }.items():
        table.add(method, 2013, numbers, "none", "memory", paper)
    return tuple(table.rows)


def _half() -> tuple[Published, ...]:
    table = _Table(("wine", "breast-cancer-prognostic", "parkinsons", "ionosphere", "housing"))
    papers = "Ghalebikesabi et al. 2023; Quasi-Bayesian Vine 2024"
    discrete = "values far below zero come from columns that take few values, where a density can peak without bound"
    for method, numbers in {
        "KDE": "13.69±.00 10.45±.24 12.83±.27 32.06±.00 8.34±.00",
        "DPMM, diagonal": "17.46±.60 16.26±.71 22.28±.66 35.30±1.28 7.64±.09",
        "DPMM, full": "32.88±.82 26.67±1.32 39.95±1.56 86.18±10.2 9.45±.43",
        "MAF": "39.60±1.41 10.13±.40 11.76±.45 140.09±4.03 56.01±27.7",
        "RQ-NSF": "38.34±.63 26.41±.57 31.26±.31 54.49±.65 -2.20±.11",
        "R-BP": "13.57±.04 7.45±.02 9.15±.04 21.15±.04 4.56±.04",
        "AR-BP": "13.45±.05 6.18±.05 8.29±.11 17.16±.25 -0.45±.77",
        "ARd-BP": "13.22±.04 6.11±.04 7.21±.12 16.48±.26 -14.75±.89",
        "ARnet-BP": "14.41±.11 6.87±.23 8.29±.17 15.32±.35 -5.71±.62",
        "QB-Vine": "13.76±.13 4.67±.31 4.93±.20 -16.08±2.1 -31.04±1.0",
    }.items():
        table.add(method, None, numbers, "runs-2se", "memory", papers, discrete)
    return tuple(table.rows)


PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "literature": _literature(),
    "rnade": _rnade(),
    "half": _half(),
}
"""Published rows by name of the suite."""

COLUMNS: Mapping[str, Mapping[str, int]] = {
    "literature": {"power": 6, "gas": 8, "hepmass": 21, "miniboone": 43, "bsds300": 63},
    "rnade": {"red-wine": 11, "white-wine": 11, "parkinsons-telemonitoring": 15, "ionosphere": 32, "housing": 10},
    "half": {"wine": 14, "breast-cancer-prognostic": 14, "parkinsons": 16, "ionosphere": 30, "housing": 13},
}
"""Number of columns of each data set in the published tables; with other columns it is another problem."""
