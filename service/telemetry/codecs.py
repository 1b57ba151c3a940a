"""The log that image codecs keep of their own: a line on standard error for each odd image."""

from __future__ import annotations

import ctypes
import warnings

from PIL import _imaging


def silence() -> None:
    """Let them say nothing in this process: strangers could fill the log, with lines not of JSON.

    What they say is lost, but not what Pillow makes of it: an image that is damaged is refused.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # libtiff, any copy of it, is found by the extension module that decodes with it.
    pillow = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if set_handler := getattr(pillow, name, None):
            set_handler(None)
