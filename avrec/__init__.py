"""avrec: two-tower retrieval models for audio and video, trained end to end through their encoders.

The public names stand in ``__init__.pyi``. Each is imported when it is first asked for: torch and Lightning take
seconds, a loaded tower needs no Lightning, and ``train.py --help`` neither.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
