"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300: their sizes, files and preparation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pushforward.datasets.sources.pandas_pickle import read_frame
from pushforward.datasets.sources.preprocessing import PreparedSet, clean_miniboone, gas, hepmass, miniboone, power
from pushforward.datasets.sources.raw_files import (
    read_array,
    read_gas_text,
    read_hdf5,
    read_hepmass,
    read_miniboone_text,
    read_power_text,
)

ARCHIVE = "data.tar.gz"
"""The archive of Papamakarios, Pavlakou and Murray that holds all five: Zenodo record 1161203, CC BY 4.0."""

ARCHIVE_URLS = (
    "https://zenodo.org/record/1161203/files/data.tar.gz",
    "https://zenodo.org/api/records/1161203/files/data.tar.gz/content",
)
ARCHIVE_MD5 = "md5:9b9c9b0375315ad270eba4ce80c093ab"
ARCHIVE_BYTES = 857_000_000
"""Approximate size, to check the free disk space before connecting."""


@dataclass(frozen=True)
class Mirrors:
    """Where to download the archive of the literature's sets, and its checksum.

    Args:
        urls: URLs of the archive.
        checksum: Its checksum.
        expected_bytes: Its approximate size.
    """

    urls: tuple[str, ...] = ARCHIVE_URLS
    checksum: str = ARCHIVE_MD5
    expected_bytes: int = ARCHIVE_BYTES


MIRRORS = Mirrors()

Prepare = Callable[[tuple[Path, ...]], PreparedSet]


@dataclass(frozen=True)
class Substitute:
    """Files of UCI from which a set can be prepared without the archive.

    Args:
        files: Their names.
        prepare: Prepares the set from these files, in this order.
        note: How the result may differ from the published set.
    """

    files: tuple[str, ...]
    prepare: Prepare
    note: str


@dataclass(frozen=True)
class LiteratureSet:
    """One of the five data sets of the literature.

    Args:
        name: Its name on the command line.
        counts: Published numbers of training, validation and test rows.
        columns: Published number of columns.
        description: One line.
        members: Its files in the archive.
        unpacked_bytes: Upper bound of their unpacked size.
        prepare: Prepares the set from these files, in this order.
        substitute: Other files to prepare the set from.
    """

    name: str
    counts: tuple[int, int, int]
    columns: int
    description: str
    members: tuple[str, ...]
    unpacked_bytes: int
    prepare: Prepare
    substitute: Substitute | None = None

    @property
    def rows(self) -> int:
        """Number of rows of all parts."""
        return sum(self.counts)


def _bsds300(files: tuple[Path, ...]) -> PreparedSet:
    train, validation, test = read_hdf5(files[0], ("train", "validation", "test"))
    columns = tuple(f"x{k + 1}" for k in range(train.shape[1]))
    # No further step: patches come with their mean removed and without the last pixel, which is minus the sum of the
    # others. They keep their precision, because they are large.
    return PreparedSet(columns, train, validation, test)


def _power_from_text(files: tuple[Path, ...]) -> PreparedSet:
    return power(read_power_text(files[0]))


def _miniboone_from_text(files: tuple[Path, ...]) -> PreparedSet:
    return miniboone(clean_miniboone(read_miniboone_text(files[0])))


def _hepmass(files: tuple[Path, ...]) -> PreparedSet:
    return hepmass(*(read_hepmass(file) for file in files))


def _gas_from_text(files: tuple[Path, ...]) -> PreparedSet:
    return gas(*read_gas_text(files[0]))


LITERATURE: dict[str, LiteratureSet] = {
    literature.name: literature
    for literature in (
        LiteratureSet(
            "power",
            (1_659_917, 184_435, 204_928),
            6,
            "UCI 235: electric power consumption of a household",
            ("data/power/data.npy",),
            200_000_000,
            lambda files: power(read_array(files[0])),
            Substitute(
                ("household_power_consumption.txt",),
                _power_from_text,
                "made from UCI's file, not from the published array, whose encoding of the time is undocumented",
            ),
        ),
        LiteratureSet(
            "gas",
            (852_174, 94_685, 105_206),
            8,
            "UCI 322: gas sensors under mixtures of ethylene and carbon monoxide",
            ("data/gas/ethylene_CO.pickle",),
            300_000_000,
            lambda files: gas(*read_frame(files[0])),
            Substitute(
                ("ethylene_CO.txt",),
                _gas_from_text,
                "made from UCI's file: a quarter of its rows like the published one, but not the same quarter",
            ),
        ),
        LiteratureSet(
            "hepmass",
            (315_123, 35_013, 174_987),
            21,
            "UCI 347: collisions that make a particle of mass 1000",
            ("data/hepmass/1000_train.csv", "data/hepmass/1000_test.csv"),
            1_000_000_000,
            _hepmass,
        ),
        LiteratureSet(
            "miniboone",
            (29_556, 3_284, 3_648),
            43,
            "UCI 199: electron neutrinos of the MiniBooNE experiment",
            ("data/miniboone/data.npy",),
            20_000_000,
            lambda files: miniboone(read_array(files[0])),
            Substitute(
                ("MiniBooNE_PID.txt",), _miniboone_from_text, "made from UCI's file, not from the published array"
            ),
        ),
        LiteratureSet(
            "bsds300",
            (1_000_000, 50_000, 250_000),
            63,
            "BSDS300: patches of 8 by 8 pixels of photographs",
            ("data/BSDS300/BSDS300.hdf5",),
            1_000_000_000,
            _bsds300,
        ),
    )
}


def check_counts(literature: LiteratureSet, found: PreparedSet) -> str | None:
    """Describe how the numbers of rows and columns differ from the published ones; None if they do not."""
    if found.counts == literature.counts and len(found.columns) == literature.columns:
        return None
    sizes = [
        f"{train:,} + {validation:,} + {test:,} rows of {columns} columns"
        for (train, validation, test), columns in (
            (literature.counts, literature.columns),
            (found.counts, len(found.columns)),
        )
    ]
    return f"expected {sizes[0]}; got {sizes[1]}"


def finite(found: PreparedSet) -> bool:
    """Whether all values are finite."""
    return all(bool(np.isfinite(part).all()) for part in (found.train, found.validation, found.test))
