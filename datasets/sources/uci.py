"""The small UCI data sets used as density estimation benchmarks: their files and columns.

The package does not contain them: their files are downloaded into the data folder, or found there. Class labels and
identifiers are left out; the target of a regression is a column like any other. Checksums are those of the files
published by UCI; if none is known, that of the first download is stored and later downloads are compared with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
_ZIP = "https://archive.ics.uci.edu/static/public"


@dataclass(frozen=True)
class UciFile:
    """A file with the rows of a data set.

    Args:
        file: Its name.
        layout: Its format: ``delimited`` text, columns separated by ``blanks``, or the first ``sheet`` of a workbook.
        columns: Names of its columns in order; empty for those that are left out.
        urls: Where to download it, tried in order: the file, or a zip archive with it.
        sha256: Checksum of the file; None if unknown.
        note: Note for the user if this file is used.
    """

    file: str
    layout: Literal["delimited", "blanks", "sheet"]
    columns: tuple[str, ...]
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    note: str = ""


@dataclass(frozen=True)
class UciSet:
    """A data set of the UCI repository.

    Args:
        name: Its name on the command line.
        rows: Number of rows without missing cells.
        description: One line.
        files: Files that may hold it, the best first; the first one is downloaded.
        left_out: By protocol, the columns to drop instead of applying the protocol's rule.
    """

    name: str
    rows: int
    description: str
    files: tuple[UciFile, ...]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def columns(self) -> int:
        """Number of columns, without those left out."""
        return sum(bool(name) for name in self.files[0].columns)


def _centred(file: str, columns: tuple[str, ...], more: str = "") -> UciFile:
    """Describe a copy used by regression benchmarks: no header, columns centred, rows in another order."""
    note = f"{file}.gz is a copy with every column centred, rounded to five digits, rows reordered{more}"
    return UciFile(file, "delimited", columns, note=note)


_WINE = (
    *("fixed acidity", "volatile acidity", "citric acid", "residual sugar", "chlorides", "free sulfur dioxide"),
    *("total sulfur dioxide", "density", "pH", "sulphates", "alcohol", "quality"),
)
# Nearly all columns of the wines are so coarse that the rule would keep only three.
_WINE_LEFT_OUT = MappingProxyType({"tenths": ("quality",)})
_JITTER = ("Jitter(%)", "Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP")
_SHIMMER = ("Shimmer", "Shimmer(dB)", "Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA")
_TELEMONITORING = (*_JITTER, *_SHIMMER, "NHR", "HNR", "RPDE", "DFA", "PPE")
_VOICE = (
    *("name", "MDVP:Fo(Hz)", "MDVP:Fhi(Hz)", "MDVP:Flo(Hz)", "MDVP:Jitter(%)", "MDVP:Jitter(Abs)", "MDVP:RAP"),
    *("MDVP:PPQ", "Jitter:DDP", "MDVP:Shimmer", "MDVP:Shimmer(dB)", "Shimmer:APQ3", "Shimmer:APQ5", "MDVP:APQ"),
    *("Shimmer:DDA", "NHR", "HNR", "status", "RPDE", "DFA", "spread1", "spread2", "D2", "PPE"),
)
_NUCLEUS = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points"),
    *("symmetry", "fractal_dimension"),
)
_HOUSING = (*("CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT", "MEDV"),)
_AIRFOIL = ("frequency", "angle", "chord", "velocity", "thickness", "pressure")
_CONCRETE = ("cement", "slag", "ash", "water", "superplasticizer", "coarse", "fine", "age", "strength")
_ENERGY = ("X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8", "Y1", "Y2")
_YACHT = ("position", "prismatic", "length_displacement", "beam_draught", "length_beam", "Froude", "resistance")
_MAGIC = (*("fLength", "fWidth", "fSize", "fConc", "fConc1", "fAsym", "fM3Long", "fM3Trans", "fAlpha", "fDist", ""),)

UCI: dict[str, UciSet] = {
    uci.name: uci
    for uci in (
        UciSet(
            "red-wine",
            1599,
            "UCI 186: measurements and grade of red wines",
            (
                UciFile(
                    "winequality-red.csv",
                    "delimited",
                    _WINE,
                    (f"{_UCI}/wine-quality/winequality-red.csv", f"{_ZIP}/186/wine+quality.zip"),
                    "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
                ),
            ),
            _WINE_LEFT_OUT,
        ),
        UciSet(
            "white-wine",
            4898,
            "UCI 186: measurements and grade of white wines",
            (
                UciFile(
                    "winequality-white.csv",
                    "delimited",
                    _WINE,
                    (f"{_UCI}/wine-quality/winequality-white.csv", f"{_ZIP}/186/wine+quality.zip"),
                    "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
                ),
            ),
            _WINE_LEFT_OUT,
        ),
        UciSet(
            "parkinsons-telemonitoring",
            5875,
            "UCI 189: voice at home and severity of Parkinson's disease",
            (
                UciFile(
                    "parkinsons_updrs.data",
                    "delimited",
                    ("subject#", "age", "sex", "test_time", "motor_UPDRS", "total_UPDRS", *_TELEMONITORING),
                    (
                        f"{_UCI}/parkinsons/telemonitoring/parkinsons_updrs.data",
                        f"{_ZIP}/189/parkinsons+telemonitoring.zip",
                    ),
                    "f2c7d5025dec4e92e7feae367a5f7ccf58789a10ac6b54bdf15976c599f9dd39",
                ),
                _centred(
                    "parkinsons.csv",
                    ("subject#", "age", "sex", "test_time", *_TELEMONITORING, "total_UPDRS"),
                    ", without motor_UPDRS",
                ),
            ),
        ),
        UciSet(
            "ionosphere",
            351,
            "UCI 52: radar returns from the ionosphere",
            (
                UciFile(
                    "ionosphere.data",
                    "delimited",
                    # The second column is 0 in all rows, the last is the class.
                    ("a01", "", *(f"a{k:02}" for k in range(3, 35)), ""),
                    (f"{_UCI}/ionosphere/ionosphere.data", f"{_ZIP}/52/ionosphere.zip"),
                    "46d52186b84e20be52918adb93e8fb9926b34795ff7504c24350ae0616a04bbd",
                ),
            ),
            # The code of Fong, Holmes and Walker uses the columns from the third on.
            MappingProxyType({"half": ("a01",)}),
        ),
        UciSet(
            "housing",
            506,
            "Boston housing: prices and what goes with them",
            (
                UciFile(
                    "housing.data",
                    "blanks",
                    _HOUSING,
                    (f"{_UCI}/housing/housing.data",),
                    "baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a",
                ),
                UciFile("boston", "blanks", _HOUSING, ("http://lib.stat.cmu.edu/datasets/boston",)),
                _centred("housing.csv", _HOUSING),
            ),
            # The ten columns of the code of Baptista, Marzouk and Zahm; the thirteen attributes without the price.
            MappingProxyType({"rnade": ("ZN", "CHAS", "RAD", "TAX"), "half": ("MEDV",)}),
        ),
        UciSet(
            "breast-cancer-prognostic",
            194,
            "UCI 16: cell nuclei, tumor and time to recurrence",
            (
                UciFile(
                    "wpbc.data",
                    "delimited",
                    (
                        *("", "", "time"),
                        *(f"{part}_{what}" for part in ("mean", "se", "worst") for what in _NUCLEUS),
                        *("tumor_size", "lymph_nodes"),
                    ),
                    (
                        f"{_UCI}/breast-cancer-wisconsin/wpbc.data",
                        f"{_ZIP}/16/breast+cancer+wisconsin+prognostic.zip",
                    ),
                    "f2bd5ccdb6086fa832370dc043319907430cf6bfcfd3b96a3961a357be345c8e",
                ),
            ),
        ),
        UciSet(
            "parkinsons",
            195,
            "UCI 174: voices with and without Parkinson's disease",
            (
                UciFile(
                    "parkinsons.data",
                    "delimited",
                    tuple("" if column in ("name", "status") else column for column in _VOICE),
                    (f"{_UCI}/parkinsons/parkinsons.data", f"{_ZIP}/174/parkinsons.zip"),
                    "a36116c2deac07895b79ce97a2f99a1b3720ac4892995ff5c3b9ccb397ed2bc5",
                ),
            ),
        ),
        UciSet(
            "protein",
            45_730,
            "UCI 265: tertiary structure of proteins (CASP)",
            (
                UciFile(
                    "CASP.csv",
                    "delimited",
                    ("RMSD", *(f"F{k}" for k in range(1, 10))),
                    (
                        f"{_UCI}/00265/CASP.csv",
                        f"{_ZIP}/265/physicochemical+properties+of+protein+tertiary+structure.zip",
                    ),
                    "4277cfcb4e91a181746cbc654f001b57951c9e6a80f4f795fdb5c807e0848f40",
                ),
            ),
        ),
        UciSet(
            "magic",
            19_020,
            "UCI 159: images of a gamma telescope",
            (
                UciFile(
                    "magic04.data",
                    "delimited",
                    _MAGIC,
                    (f"{_UCI}/magic/magic04.data", f"{_ZIP}/159/magic+gamma+telescope.zip"),
                    "e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a",
                ),
            ),
        ),
        UciSet(
            "power-plant",
            9568,
            "UCI 294: weather and output of a power plant",
            (
                UciFile(
                    "Folds5x2_pp.xlsx",
                    "sheet",
                    ("AT", "V", "AP", "RH", "PE"),
                    (f"{_UCI}/00294/CCPP.zip", f"{_ZIP}/294/combined+cycle+power+plant.zip"),
                    "ccd490981db2a2f079963b3d9f0aea30d9d338900a0285428dfc6385396f4651",
                ),
            ),
        ),
        UciSet(
            "concrete",
            1030,
            "UCI 165: mixture, age and strength of concrete",
            (
                UciFile(
                    "concrete-data.csv",
                    "delimited",
                    _CONCRETE,
                    (f"{_ZIP}/165/data.csv",),
                    "8d4b15b6fc68cd932d745cbd663d5ceae66dd54422e99c1e4865f2936ab7e2af",
                ),
                _centred("concrete.csv", _CONCRETE),
            ),
        ),
        UciSet(
            "energy",
            768,
            "UCI 242: shapes of buildings and their heating and cooling loads",
            (
                UciFile(
                    "ENB2012_data.xlsx",
                    "sheet",
                    _ENERGY,
                    (f"{_UCI}/00242/ENB2012_data.xlsx", f"{_ZIP}/242/energy+efficiency.zip"),
                ),
                _centred("energy.csv", _ENERGY[:9], ", without the cooling load Y2"),
            ),
        ),
        UciSet(
            "yacht",
            308,
            "UCI 243: shapes of hulls and their resistance",
            (
                UciFile(
                    "yacht_hydrodynamics.data",
                    "blanks",
                    _YACHT,
                    (f"{_UCI}/00243/yacht_hydrodynamics.data", f"{_ZIP}/243/yacht+hydrodynamics.zip"),
                    "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
                ),
                _centred("yacht.csv", _YACHT, ", resistance in logarithms"),
            ),
        ),
        UciSet(
            "airfoil",
            1503,
            "UCI 291: noise of airfoils in a wind tunnel",
            (
                UciFile(
                    "airfoil_self_noise.dat",
                    "blanks",
                    _AIRFOIL,
                    (f"{_UCI}/00291/airfoil_self_noise.dat", f"{_ZIP}/291/airfoil+self+noise.zip"),
                    "74c75fd71783f1e6b71f8a622b993dc592897a97cd689c5090a07147a1b097b3",
                ),
                _centred("airfoil.csv", _AIRFOIL),
            ),
        ),
    )
}
