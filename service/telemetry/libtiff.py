"""libtiff, which has a log of its own: a line on standard error for each fault of an image."""

from __future__ import annotations

import ctypes

from PIL import _imaging


def silence() -> None:
    """Let it say nothing in this process: strangers could fill the log, in lines that are no JSON.

    What it says is lost, but not what Pillow makes of it: an image that is damaged is refused.
    """
    # By the extension module that decodes, any copy of libtiff that it is linked with is found.
    pillow = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if set_handler := getattr(pillow, name, None):
            set_handler(None)
