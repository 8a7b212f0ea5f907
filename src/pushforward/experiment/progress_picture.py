"""Pictures of a fit in progress."""

from pathlib import Path

from pushforward.evaluate.plots.corner import corner
from pushforward.evaluate.plots.density import density_2d
from pushforward.evaluate.sampling import draw_samples
from pushforward.flows import Model
from pushforward.train.data import Prepared

_SAMPLES = 2_000
_COLUMNS = 4


def draw_progress(flow: Model, prepared: Prepared, path: Path) -> None:
    """Draw samples of the flow against validation rows: with the density in two dimensions, else as a corner plot.

    The random state of torch does not change. Cost: half a second to a second.

    Args:
        flow: A flow in data units, without context, in double precision.
        prepared: The data that it is fitted to.
        path: The file to write.
    """
    names = prepared.dataset.schema.names
    held_out = prepared.validation.rows[: 2 * _SAMPLES]
    drawn = draw_samples(flow, _SAMPLES, seed=0)
    if len(names) == 2:
        toy = prepared.dataset.toy
        density_2d(flow, drawn, held_out, None if toy is None else toy.log_prob, path, columns=names)
    else:
        corner(drawn, held_out, names, path, max_columns=_COLUMNS)
