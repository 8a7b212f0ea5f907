"""What a fitted density is worth: likelihood, baselines, samples, latents, pictures.

Names are imported when they are first asked for: pages and charts of what was measured must not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pushforward.evaluate import plots
    from pushforward.evaluate.baselines import Baseline, fit_baselines
    from pushforward.evaluate.inversion import LogDetError, RoundTrip, log_det_error, round_trip
    from pushforward.evaluate.latent import LatentReport, latent_normality
    from pushforward.evaluate.likelihood import (
        Density,
        Nll,
        kl_to_truth,
        log_prob,
        nll,
        nll_from,
        paired_difference,
    )
    from pushforward.evaluate.report import EvaluationReport, draw_samples, evaluate_flow, latent_noise
    from pushforward.evaluate.samples import (
        C2st,
        SampleReport,
        classifier_two_sample_test,
        compare_samples,
        sliced_wasserstein,
    )

_HOMES = {
    "Baseline": "baselines",
    "C2st": "samples",
    "Density": "likelihood",
    "EvaluationReport": "report",
    "LatentReport": "latent",
    "LogDetError": "inversion",
    "Nll": "likelihood",
    "RoundTrip": "inversion",
    "SampleReport": "samples",
    "classifier_two_sample_test": "samples",
    "compare_samples": "samples",
    "draw_samples": "report",
    "evaluate_flow": "report",
    "fit_baselines": "baselines",
    "kl_to_truth": "likelihood",
    "latent_noise": "report",
    "latent_normality": "latent",
    "log_det_error": "inversion",
    "log_prob": "likelihood",
    "nll": "likelihood",
    "nll_from": "likelihood",
    "paired_difference": "likelihood",
    "round_trip": "inversion",
    "sliced_wasserstein": "samples",
}

__all__ = [
    "Baseline",
    "C2st",
    "Density",
    "EvaluationReport",
    "LatentReport",
    "LogDetError",
    "Nll",
    "RoundTrip",
    "SampleReport",
    "classifier_two_sample_test",
    "compare_samples",
    "draw_samples",
    "evaluate_flow",
    "fit_baselines",
    "kl_to_truth",
    "latent_noise",
    "latent_normality",
    "log_det_error",
    "log_prob",
    "nll",
    "nll_from",
    "paired_difference",
    "plots",
    "round_trip",
    "sliced_wasserstein",
]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("pushforward.evaluate.plots")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pushforward.evaluate.{_HOMES[name]}"), name)
