"""Metrics and plots of a density."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.evaluate.baselines import Baseline as Baseline, fit_baselines as fit_baselines
    from pushforward.evaluate.density import FittedDensity as FittedDensity
    from pushforward.evaluate.evaluation import (
        EvaluationReport as EvaluationReport,
        SplitRows as SplitRows,
        evaluate_flow as evaluate_flow,
    )
    from pushforward.evaluate.inversion import (
        LogDetError as LogDetError,
        RoundTrip as RoundTrip,
        log_det_error as log_det_error,
        round_trip as round_trip,
    )
    from pushforward.evaluate.latent import LatentReport as LatentReport, latent_normality as latent_normality
    from pushforward.evaluate.likelihood import (
        Density as Density,
        Nll as Nll,
        kl_to_truth as kl_to_truth,
        log_prob as log_prob,
        nll as nll,
        nll_from as nll_from,
        paired_difference as paired_difference,
    )
    from pushforward.evaluate.samples import (
        C2st as C2st,
        SampleReport as SampleReport,
        classifier_two_sample_test as classifier_two_sample_test,
        compare_samples as compare_samples,
        sliced_wasserstein as sliced_wasserstein,
    )
    from pushforward.evaluate.sampling import draw_samples as draw_samples, latents as latents

__getattr__, __dir__ = lazy(
    "pushforward.evaluate",
    {
        "baselines": "Baseline fit_baselines",
        "density": "FittedDensity",
        "evaluation": "EvaluationReport SplitRows evaluate_flow",
        "inversion": "LogDetError RoundTrip log_det_error round_trip",
        "latent": "LatentReport latent_normality",
        "likelihood": "Density Nll kl_to_truth log_prob nll nll_from paired_difference",
        "samples": "C2st SampleReport classifier_two_sample_test compare_samples sliced_wasserstein",
        "sampling": "draw_samples latents",
    },
)
