"""NumPyro models as this library sees them: one unconstrained vector, and black boxes."""

from implicitppl._core.faces import show_at
from implicitppl.models._boxes.call import BlackBoxError
from implicitppl.models._boxes.handlers import replace_boxes
from implicitppl.models._boxes.site import black_box
from implicitppl.models._target import Target, posterior_target

__all__ = ["BlackBoxError", "Target", "black_box", "posterior_target", "replace_boxes"]

show_at(globals())
