"""The rows of the table: what is compared, and the flags that make each row that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.baselines import BASELINES
from benchmarks.deep import DEEP

BEST = ("--preset", "best")
PUBLISHED = ("--preset", "published")
EIGHT = ("--views", 8)
FLAT = ("--alpha", 1, "--label_spread", 0)


@dataclass(frozen=True)
class Method:
    """A row that is trained: flags beside those of the table, and what it is to be compared with.

    Args:
        title: its name in the table.
        first: flags of autoencoder.py.
        second: flags of train.py.
        base: the method of which one setting is changed here; None where this is no ablation.
        pairs: whether it makes sense with a second source only.
        sized: whether the table says how the hash network is fine-tuned: --image_size, --max_epoch
            and --batch_size. The head of `--preset best` alone is not.
        hashing: flags of test.py; a row that has some takes the network of the row without.
    """

    title: str
    first: Sequence[object] = ()
    second: Sequence[object] = ()
    base: str | None = None
    pairs: bool = False
    sized: bool = True
    hashing: Sequence[object] = ()


def _mrhash(title: str, first: Sequence[object] = (), second: Sequence[object] = (),
            pairs: bool = False) -> Method:
    return Method(f"MrHash, {title}", first, second, "mrhash", pairs)


def _best(title: str, first: Sequence[object] = (), second: Sequence[object] = (),
          pairs: bool = False) -> Method:
    return Method(f"best, {title}", (*BEST, *first), (*BEST, *second), "best", pairs, sized=False)


TRAINED = {
    "mrhash": Method("MrHash"),
    "mrhash-flat": _mrhash("labels as published", second=FLAT),
    "mrhash-none": _mrhash("no second source", ["--source2", "none"], pairs=True),
    "mrhash-unisource": _mrhash("unisource encoder", ["--encoder", "unisource"], pairs=True),
    "mrhash-single": _mrhash("single pseudo labels", second=["--pseudo_labels", "single"]),
    "mrhash-frozen": _mrhash("backbone frozen", second=["--multi_lr", 0]),
    "best": Method("MrHash, `--preset best`", BEST, BEST, sized=False),
    "best-views": Method("`--preset best`, eight views hashed", BEST, BEST, sized=False,
                         hashing=EIGHT),
    # No part of it, since parts are quick: it costs a fine-tuning.
    "best-tuned": Method("MrHash, `--preset best`, fine-tuned", BEST, BEST),
    "best-tuned-views": Method("`--preset best`, fine-tuned, eight views hashed", BEST, BEST,
                               hashing=EIGHT),
    "best-none": _best("no second source", ["--source2", "none"], pairs=True),
    "best-unisource": _best("unisource encoder", ["--encoder", "unisource"], pairs=True),
    "best-single": _best("single pseudo labels", second=["--pseudo_labels", "single"]),
    "best-one-view": _best("one view of each image", ["--views", 1]),
    "best-no-neighbours": _best("features not averaged", ["--neighbours", 0]),
    "best-nearest": _best("neighbours need not be mutual", ["--averaging", "nearest"]),
    "best-one-round": _best("averaged once", ["--averaging_rounds", 1]),
    "best-10-neighbours": _best("10 neighbours", ["--neighbours", 10]),
    "best-no-norm": _best("features not normalised", ["--feature_norm", "none"]),
    "best-flat": _best("probability function as published", second=FLAT),
    "best-16": _best("16 clusters", second=["--n_clusters", 16]),
    "best-64": _best("64 clusters", second=["--n_clusters", 64]),
    "best-no-head": _best("no hidden layer", second=["--head_width", 0]),
    "best-mean": _best("divergence averaged over clusters too", second=["--kl", "mean"]),
    "best-learning": _best(
        "autoencoder, centres and targets trained as published",
        second=["--autoencoder", "trained", "--centres", "trained", "--targets", "epoch"]),
    "mrhash-init-torch": _mrhash("torch's initial weights", ["--init", "torch"]),
    "mrhash-ae-last": _mrhash("autoencoder of the last epoch", ["--select", "last"]),
    "mrhash-ae-test-map": _mrhash("autoencoder chosen by test labels", ["--select", "test_map"]),
    "mrhash-select-loss": _mrhash("epoch of least loss", second=["--select", "loss"]),
    "mrhash-select-test-map": _mrhash(
        "epoch chosen by test labels", second=["--select", "test_map", "--eval_frequency", 1]),
    "mrhash-batchmean": _mrhash("divergence averaged over the batch alone",
                                second=["--kl", "batchmean"]),
    "mrhash-once": _mrhash("pseudo labels made once", second=["--targets", "once"]),
    "mrhash-fixed": _mrhash("centres fixed", second=["--centres", "fixed"]),
    "mrhash-lambda0-0": _mrhash("no reconstruction in stage 2", second=["--lambda0", 0]),
    "mrhash-8": _mrhash("8 clusters", second=["--n_clusters", 8]),
    "mrhash-32": _mrhash("32 clusters", second=["--n_clusters", 32]),
    "mrhash-64": _mrhash("64 clusters", second=["--n_clusters", 64]),
    "mrhash-adapt": _mrhash("batch normalisation adapts", second=["--batch_norm", "adapt"]),
    "mrhash-published": _mrhash("all as published", PUBLISHED, PUBLISHED),
    # AlexNet, the published network, has no batch normalisation.
    "mrhash-published-frozen": _mrhash("all as published, batch normalisation frozen", PUBLISHED,
                                       [*PUBLISHED, "--batch_norm", "frozen"]),
}
FLOATS = ("float", "float-views", "float-both")  # level lines: no codes
TITLES = {
    "float": "float features, centred cosine", "float-views": "float features, mean of all views",
    "float-both": "float features of both sources",
    "lsh": "LSH", "pcah": "PCAH", "sh": "spectral hashing", "agh": "AGH", "imh": "IMH",
    "itq": "ITQ", "ssdh": "SSDH", "greedyhash": "GreedyHash", "bihalf": "BiHalf",
    "cibhash": "CIBHash", "greedyhash-both": "GreedyHash, both sources",
    "bihalf-both": "BiHalf, both sources",
    **{name: method.title for name, method in TRAINED.items()},
}
assert set(TITLES) == {*FLOATS, *BASELINES, *DEEP, *TRAINED}
# Rows made in this process that see both sources.
BOTH = {"float-both", "greedyhash-both", "bihalf-both"}
PAIRED = {*BOTH, *(name for name, method in TRAINED.items() if method.pairs)}
ALONE = {name for name, method in TRAINED.items() if "--source2" in method.first}  # with none

USUAL = [*FLOATS, *BASELINES, *DEEP, "mrhash-flat", "mrhash", "mrhash-none", "mrhash-unisource",
         "mrhash-single", "mrhash-frozen", "best", "best-none", "best-views"]
# Words for many methods at once: a method and all that change one setting of it.
GROUPS = {word: [base, *(name for name, method in TRAINED.items() if method.base == base)]
          for word, base in (("effects", "mrhash"), ("parts", "best"))}
