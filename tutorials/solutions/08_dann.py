"""Solutions of the exercises of "Can labels of one domain serve another?"."""

import torch
from torch import nn


def exercise_1() -> None:
    """Thresholds x > c and x < c, on a grid of c; the sample is small enough for all pairs."""
    n = 300
    y = (torch.arange(2 * n) >= n).long()
    source = torch.cat([torch.randn(n) - 1, torch.randn(n) + 1])
    target = source[torch.randperm(2 * n).argsort()] + 0.7 + 0.3 * torch.randn(2 * n)
    cuts = torch.linspace(-4, 5, 91)
    rising = (source > cuts[:, None]).long(), (target > cuts[:, None]).long()
    on_source, on_target = (torch.cat([labels, 1 - labels]) for labels in rising)  # (classifiers, rows)
    source_error, target_error = ((labels != y).float().mean(1) for labels in (on_source, on_target))
    differ = [(labels[:, None] != labels).float().mean(2) for labels in (on_source, on_target)]
    half_d = (differ[1] - differ[0]).abs().max()
    lam = (source_error + target_error).min()
    bound = source_error + half_d + lam
    assert (target_error <= bound + 1e-6).all()
    assert 0 < half_d < 1
    assert 0 < lam < 1


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -alpha."""

    @staticmethod
    def forward(ctx, h, alpha):
        ctx.alpha = alpha
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.alpha * gradient, None


def exercise_2() -> None:
    """One backward pass beside the gradients of T1 - alpha T2 and of T2."""
    x, y, d = torch.randn(20, 3), torch.randint(2, (20,)), torch.randint(2, (20,)).float()
    features, classifier, critic = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)
    alpha = 0.3

    def t1(h):
        return nn.functional.cross_entropy(classifier(h), y)

    def t2(h):
        return nn.functional.binary_cross_entropy_with_logits(critic(h)[:, 0], d)

    h = features(x)
    of_features, of_critic = list(features.parameters()), list(critic.parameters())
    found = torch.autograd.grad(t1(h) + t2(Reverse.apply(h, alpha)), of_features + of_critic)
    h = features(x)
    expected = torch.autograd.grad(t1(h) - alpha * t2(h), of_features, retain_graph=True)
    expected += torch.autograd.grad(t2(h), of_critic)
    torch.testing.assert_close(found, expected)


def exercise_3() -> None:
    """The same rows with other labels: no distance sees it, and lambda is one."""
    x = torch.cat([torch.randn(500) - 5, torch.randn(500) + 5])
    y = (torch.arange(1000) >= 500).long()
    exchanged = 1 - y
    predicted = (x > 0).long()
    assert (predicted == y).all()
    assert (predicted != exchanged).all()
    errors = torch.stack([((x > c).long() != y).float().mean() for c in torch.linspace(-8, 8, 33)])
    torch.testing.assert_close(errors + (1 - errors), torch.ones(33))  # of every classifier: the sum of both errors
