"""Data to fit: toy data sets, bundled and downloaded ones, tables and images from files.

`load` reads a data set by its name or path and returns a `Data`: rows in the form that a likelihood scores (continuous,
integer, binary, unit), split into train, validation and test, and scaled by statistics of the training rows. The toy
data sets are functions ``f(n, *, seed=0, ...) -> (x, y)`` as well. ``__init__.pyi`` lists the public names; each is
imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
