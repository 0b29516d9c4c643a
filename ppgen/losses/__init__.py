"""Losses as sums of terms: where two distributions are compared, and by which metric. Each is a Pyro ELBO.

``__init__.pyi`` lists the public names and their modules; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
