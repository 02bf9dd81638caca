"""Deep unsupervised hashing of frozen features, to stand beside MrHash: one head, several losses.

GreedyHash, BiHalf, SSDH and CIBHash differ in their loss and in how a code comes from the head's
output; layers, epochs, batches and optimiser are those of `--preset best`, and no label takes part.
The head's input is centred and of one length, as the preset's is not: that suits all four
(docs/results.md). Each takes the settings of its paper and of its authors' code, or says where not.
Where a method imitates similarities, they are cosines of centred features: those of a network that
ends in ReLU are all alike otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence

from utils import InputError, cosine_decay, epoch_seed

MOST = 4000  # images whose distances are counted: 8 million pairs
HEAD = {"head_width": 512, "head_epochs": 50, "batch_size": 128, "lr": 1e-3}  # of --preset best


def cosines(x: Tensor) -> Tensor:
    """Cosine of each pair of rows (B, d): (B, B)."""
    unit = F.normalize(x)
    return unit @ unit.T


def pairs(matrix: Tensor) -> Tensor:
    """The entries of (B, B) above the diagonal: each pair once."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return matrix[rows, columns]


def joined_views(sources: Sequence[Tensor], centred: bool = True) -> Tensor:
    """What similarities are taken from: the mean view of each image, of all sources.

    Args:
        sources: for each source float32 (N, V, d), features of V views of N images.
        centred: by the mean of all images.
    Returns:
        float32 (N, sum of d): of each source the means, each of length 1.
    """
    means = [views.mean(dim=1) for views in sources]
    return torch.cat([F.normalize(x - centred * x.mean(dim=0)) for x in means], dim=1)


# ---------------------------------------------------------------- from outputs to codes


class Sign(torch.autograd.Function):
    """1 or -1; the gradient passes as if it were not there (Su et al., NeurIPS 2018)."""

    @staticmethod
    def forward(context, output: Tensor) -> Tensor:
        return torch.where(output >= 0, 1.0, -1.0)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return gradient


class Halves(torch.autograd.Function):
    """Of each bit the B // 2 largest of the batch are 1, the rest -1: the balanced code that is
    nearest (optimal transport). The gradient passes, with a pull to the code (Li & van Gemert,
    AAAI 2021).
    """

    @staticmethod
    def forward(context, output: Tensor, pull: float) -> Tensor:
        rank = output.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        code = torch.where(rank < len(output) // 2, 1.0, -1.0)
        context.save_for_backward(output, code)
        context.pull = pull
        return code

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        output, code = context.saved_tensors
        return gradient + context.pull * (output - code) / output.numel(), None


# ---------------------------------------------------------------- losses


@dataclass
class Loss:
    """A method: its settings are its fields.

    drawn: how many views of each image it sees at once. centred: for joined_views.
    """

    drawn, centred = 1, True

    def prepare(self, similar: Tensor) -> None:
        """Learn what it has to know of all training images: float32 (N, e), of joined_views."""

    def __call__(self, output: Tensor, similar: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            output: of the head, float32 (drawn * B, K); view by view.
            similar: float32 (B, e), their rows of joined_views.
        Returns:
            a scalar.
        """
        raise NotImplementedError


@dataclass
class GreedyHash(Loss):
    """Cosines of codes as those of features: their mean squared difference, and the mean cube of
    how far outputs are from -1 and 1 (Su et al., "Greedy Hash", NeurIPS 2018, without labels).
    """

    weight: float = 0.1  # of the cube

    def __call__(self, output: Tensor, similar: Tensor) -> Tensor:
        apart = pairs(cosines(Sign.apply(output))) - pairs(cosines(similar))
        return apart.square().mean() + self.weight * (output.abs() - 1).abs().pow(3).mean()


@dataclass
class BiHalf(Loss):
    """The same cosines, of codes that are balanced in each batch (Li & van Gemert, "Deep
    Unsupervised Image Hashing by Maximizing Bit Entropy", AAAI 2021).

    The pull is gamma of its authors' code, 6 in their scripts for images (SGD, one layer) and 1 in
    that for autoencoders (Adam). 1 is better with this head (docs/results.md).
    """

    pull: float = 1.0

    def __call__(self, output: Tensor, similar: Tensor) -> Tensor:
        code = Halves.apply(output, self.pull)
        return (pairs(cosines(code)) - pairs(cosines(similar))).square().mean()


@dataclass
class SSDH(Loss):
    """Pairs that are surely alike have one code, pairs that are surely not the opposite (Yang et
    al., "Semantic Structure-based Unsupervised Deep Hashing", IJCAI 2018).

    Cosine distances have one peak, and a half Gaussian on each side of it. Nearer than `near`
    deviations left of it a pair is alike, farther than `far` right of it it is not; of the pairs
    between them nothing is said. The margins go with the peak, so features stay as they are.
    """

    centred = False

    near: float = 2.0  # alpha
    far: float = 2.0  # beta
    low = high = 0.0  # known after prepare

    def prepare(self, similar: Tensor) -> None:
        some = similar[:: -(-len(similar) // MOST)]
        distance = pairs(1 - cosines(some)).cpu()
        count, edges = torch.histogram(distance, 200, range=(0.0, 2.0))  # bins of 0.01
        at = int(count.argmax())
        peak = float(edges[at:at + 2].mean())
        left, right = distance[distance <= peak] - peak, distance[distance > peak] - peak
        if len(right) == 0:
            raise InputError("SSDH tells near pairs from far ones, and all distances are alike: "
                             "use more images")
        self.low = peak - self.near * float(left.square().mean().sqrt())
        self.high = peak + self.far * float(right.square().mean().sqrt())

    def __call__(self, output: Tensor, similar: Tensor) -> Tensor:
        distance = pairs(1 - cosines(similar))
        alike = (distance < self.low).float() - (distance > self.high).float()
        code = torch.tanh(output)
        product = pairs(code @ code.T) / code.shape[1]
        return (alike.abs() * (product - alike).square()).mean()


@dataclass
class CIBHash(Loss):
    """Two views of an image have one code, and others another (Qiu et al., "Unsupervised Hashing
    with Contrastive Information Bottleneck", IJCAI 2021).

    NT-Xent of the codes, whose gradient is that of the probabilities that the head gives, and a
    little of the divergence between the probabilities of the two views, one way and the other. As
    in its authors' code, bits are not drawn, and of each divergence only the first learns. Views
    are turns and flips of frozen features, weaker than the crops and colours of the paper.
    """

    temperature: float = 0.3
    weight: float = 0.001
    drawn = 2

    def __call__(self, output: Tensor, similar: Tensor) -> Tensor:
        probability = output.sigmoid()
        code = torch.where(probability > 0.5, 1.0, -1.0)
        code = code + probability - probability.detach()  # the gradient of the probability
        count = len(similar)
        logits = cosines(code) / self.temperature
        logits = logits.masked_fill(torch.eye(2 * count, device=output.device) > 0, -torch.inf)
        partner = torch.arange(2 * count, device=output.device).roll(count)
        first, second = probability.split(count)
        apart = (_divergence(first, second.detach()) + _divergence(second, first.detach())) / 2
        return F.cross_entropy(logits, partner) + self.weight * apart


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of Bernoulli variables (B, K), summed over bits; the mean over images."""
    p, q = (Bernoulli(x.clamp(1e-6, 1 - 1e-6)) for x in (p, q))
    return kl_divergence(p, q).sum(dim=1).mean()


DEEP: dict[str, type[Loss]] = {"greedyhash": GreedyHash, "bihalf": BiHalf, "ssdh": SSDH,
                               "cibhash": CIBHash, "greedyhash-both": GreedyHash,
                               "bihalf-both": BiHalf}


def settings_of(name: str) -> dict[str, Any]:
    """What a row of DEEP is made with: of its head, and of its loss."""
    return {**HEAD, **asdict(DEEP[name]())}


# ---------------------------------------------------------------- the trainer


class Head(nn.Module):
    """The layers of `--preset best`, of features centred and of root mean square 1."""

    def __init__(self, mean: Tensor, bits: int) -> None:
        """mean: float32 (d,), of the training features. bits: K."""
        super().__init__()
        dim, width = len(mean), HEAD["head_width"]
        self.register_buffer("mean", mean)
        self.layers = nn.Sequential(nn.Dropout(0.3), nn.Linear(dim, width), nn.ReLU(),
                                    nn.Dropout(0.3), nn.Linear(width, bits))

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) -> (B, K)."""
        return self.layers(F.normalize(x - self.mean) * len(self.mean) ** 0.5)


def distinct_views(views: Tensor, rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """For some rows of (N, V, d) `number` views each, different ones as far as there are: those
    drawn first of all rows, then those drawn second: (number * B, d).
    """
    count = views.shape[1]
    turns = torch.rand(len(rows), count, generator=generator).argsort(dim=1)
    return torch.cat([views[rows, turns[:, draw % count]] for draw in range(number)])


def train_head(loss_of: Loss, views: Tensor, similar: Tensor, bits: int, seed: int,
               epochs: int = HEAD["head_epochs"]) -> Callable[[Tensor], Tensor]:
    """A head on frozen features.

    Args:
        loss_of: the method.
        views: float32 (N, V, d), features of V views of each training image, of which each epoch
            draws one, or two.
        similar: float32 (N, e), what joined_views gave.
        bits: K.
        seed: of weights, order, views, dropout and drawn bits.
        epochs: how many.
    Returns:
        what turns features (M, d) into outputs (M, K); a bit is 1 where one is >= 0.
    Raises:
        InputError: fewer than two images, which make no pair.
    """
    if len(views) < 2:
        raise InputError("deep hashing learns from pairs of training images, and there is "
                         f"{len(views)}: use more images")
    torch.manual_seed(seed)
    head = Head(views[:, 0].mean(dim=0), bits).to(views.device)
    optimizer = torch.optim.Adam(head.parameters(), HEAD["lr"], fused=True)
    loss_of.prepare(similar)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = cosine_decay(HEAD["lr"], epoch, epochs)
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        order = torch.randperm(len(views), generator=generator)
        for rows in order.split(HEAD["batch_size"]):
            if len(rows) < 2:
                continue  # no pair
            output = head(distinct_views(views, rows, loss_of.drawn, generator))
            loss = loss_of(output, similar[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head.eval()
    return lambda x: head(x).detach()
