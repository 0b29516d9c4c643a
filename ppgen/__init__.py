"""Generative models as probabilistic programs.

A Pyro model and a Pyro guide define two joint distributions of data x and latents z; a loss is a sum of terms, each of
which names where the two are compared and by which metric. `ELBO`, `Reconstruction`, `Rate` and `match` are the terms,
`views` the places, `metrics` the metrics, `recipes` the known methods; `SVI` and `fit` minimize the loss.

``__init__.pyi`` lists the public names and their modules. Each is imported when it is first used, so ``import ppgen``
is quick.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
