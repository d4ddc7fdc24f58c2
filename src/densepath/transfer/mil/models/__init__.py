"""Models of bags of tiles, by name."""

from __future__ import annotations

from densepath.core.errors import UserError, suggest
from densepath.transfer.mil.models.abmil import ABMIL, GatedABMIL
from densepath.transfer.mil.models.base import BagModel
from densepath.transfer.mil.models.clam import CLAM
from densepath.transfer.mil.models.dsmil import DSMIL
from densepath.transfer.mil.models.dsmil_linear import LinearDSMIL
from densepath.transfer.mil.models.hipt import HIPT
from densepath.transfer.mil.models.pooling import MaxPooling, MeanPooling
from densepath.transfer.mil.models.transmil import TransMIL

MODELS: dict[str, type[BagModel]] = {
    "dsmil": DSMIL,
    "dsmil_linear": LinearDSMIL,
    "abmil": ABMIL,
    "abmil_gated": GatedABMIL,
    "clam": CLAM,
    "transmil": TransMIL,
    "hipt": HIPT,
    "mean": MeanPooling,
    "max": MaxPooling,
}
KNN = "knn"
ALL = "all"


def models_named(name: str) -> list[str]:
    """The models that a name stands for.

    Raises:
        UserError: there is no such model.
    """
    known = [*MODELS, KNN]
    if name == ALL:
        return known
    if name not in known:
        raise UserError(f"no model is called {name!r}; {suggest(name, [*known, ALL])}")
    return [name]
