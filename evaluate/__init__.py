"""What a fitted density is worth: likelihood, baselines, samples, latents, pictures."""

from pushforward.evaluate import plots
from pushforward.evaluate.baselines import Baseline, fit_baselines
from pushforward.evaluate.inversion import LogDetError, RoundTrip, log_det_error, round_trip
from pushforward.evaluate.json_safe import json_safe
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
    "json_safe",
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
