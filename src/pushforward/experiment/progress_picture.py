"""The picture of a fit that is not finished yet."""

from pathlib import Path

from pushforward.evaluate.evaluation import draw_samples
from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d
from pushforward.flows import Model
from pushforward.train.data import Prepared

_SAMPLES = 2_000
_COLUMNS = 4


def draw_progress(flow: Model, prepared: Prepared, path: Path) -> None:
    """Draw the density and samples in the plane, or a small corner plot, against validation rows.

    Cost: half a second to a second. The random state of torch is left as it was.

    Args:
        flow: A flow in data units, without context, in double precision.
        prepared: What it is fitted to.
        path: Where the picture goes.
    """
    names = prepared.dataset.schema.names
    held_out = prepared.validation.rows[: 2 * _SAMPLES]
    drawn = draw_samples(flow, _SAMPLES, seed=0)
    if len(names) == 2:
        toy = prepared.dataset.toy
        density_2d(flow, drawn, held_out, None if toy is None else toy.log_prob, path, columns=names)
    else:
        corner(drawn, held_out, names, path, most=_COLUMNS)
