"""Models and their guides, ready to use.

``__init__.pyi`` lists the public names, one row for each module; a name is imported when it is first used. What a model
can do is decided by its methods, see `ppgen.models.protocols`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
