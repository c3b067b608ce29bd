"""Public data sets whose address and checksum are known, fetched where they are not found.

A file is fetched to a temporary name, its checksum compared, and only then renamed: a file that is there is whole.
The MD5s are those their authors published; they guard against damage, not against an adversary.
"""

import hashlib
import http.client
import itertools
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moyai.data.images import Progress
from moyai.data.locate import written_beside
from moyai.errors import DataError

LARGEST = 2**30  # bytes; no file known here comes near
TIMEOUT = 30.0  # seconds without an answer
CHUNK = 2**18


@dataclass(frozen=True)
class Published:
    """A published set of files: the address they lie under, and the MD5 of each."""

    address: str
    md5: Mapping[str, str]


MNIST = Published(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    },
)
FASHION_MNIST = Published(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    },
)
CIFAR10 = Published("https://www.cs.toronto.edu/~kriz/", {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"})
KNOWN = {"mnist": MNIST, "fashion-mnist": FASHION_MNIST, "cifar10": CIFAR10}


def fetch_set(published: Published, folder: Path, progress: Progress | None = None) -> None:
    """Every file of a published set that is not yet in `folder`."""
    missing = [name for name in published.md5 if not (folder / name).is_file()]
    by_hand = f"put {' and '.join(missing)} into {folder} by hand"
    for name in missing:
        try:
            fetch(published.address + name, folder / name, published.md5[name], progress)
        except DataError as error:
            raise DataError(f"{error}; try again, or {by_hand}") from error


def fetch(address: str, target: Path, md5: str, progress: Progress | None = None) -> None:
    """One file to `target`; DataError where it cannot be had or is not the published one."""
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    chunks = _chunks(address)
    first = next(chunks)  # so that nothing is written where nothing answers
    with written_beside(target, first[1]) as temporary:
        with temporary.open("wb") as file:
            for chunk, total in itertools.chain([first], chunks):
                done += len(chunk)
                digest.update(chunk)
                file.write(chunk)
                if progress:
                    progress(f"downloading {target.name}", done, max(total, done))
        if digest.hexdigest() != md5:
            raise DataError(f"{address} gave {done} bytes with MD5 {digest.hexdigest()}, published is {md5}")


def _chunks(address: str) -> Iterator[tuple[bytes, int]]:
    """The bytes behind an address, piece by piece, each with the size of the whole (0 where it is not said)."""
    request = urllib.request.Request(address, headers={"User-Agent": "moyai"})
    done = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            total = int(reply.headers.get("Content-Length") or 0)
            while chunk := reply.read(CHUNK):
                done += len(chunk)
                if done > LARGEST:
                    raise DataError(f"{address} is larger than {LARGEST} bytes, which no published file is")
                yield chunk, total
    except (OSError, http.client.HTTPException) as error:
        # urllib's errors are OSErrors: no network, no such host, a refusal, a time-out. A broken reply is HTTP's.
        raise DataError(f"could not download {address} ({getattr(error, 'reason', None) or error})") from error
    if not done:
        raise DataError(f"{address} is empty")
