"""Figures, for whoever has matplotlib."""

from typing import Any


def new_figure(width: float, height: float) -> Any:
    """
    An empty `matplotlib.figure.Figure`, of so many inches; nothing of pyplot's global state is touched.

    Raises:
        ImportError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The figure needs matplotlib. Install it with `pip install sms_hf[report]`.") from error
    return Figure(figsize=(width, height), layout="constrained")
