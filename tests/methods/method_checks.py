"""Whether a method's hyper-parameters fit views of equal sides."""

from densepath.methods.base import Method
from densepath.views.declarations import view_sizes


def check(method: Method, side: int, batch_size: int, processes: int = 1) -> None:
    """Call the method's check with the sizes of its views in images of two dimensions."""
    method.check(view_sizes(method.views(), side, 2), batch_size, processes)
