"""Figures: matplotlib pictures for files and dashboards, SVG charts for HTML pages."""

from typing import TYPE_CHECKING

from pushforward.common.lazy import lazy

if TYPE_CHECKING:
    from pushforward.evaluate.plots.corner import corner as corner
    from pushforward.evaluate.plots.density import density_2d as density_2d, latent as latent
    from pushforward.evaluate.plots.training import training_curves as training_curves

__getattr__, __dir__ = lazy(
    "pushforward.evaluate.plots",
    {
        "corner": "corner",
        "density": "density_2d latent",
        "training": "training_curves",
    },
)
