"""`params.yaml` as frozen, checked objects: the only place for settings.

Read once at the door of each stage. An unknown key or a value out of range names the line that a person must change.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ParamsError
from pipeline.schema import ENSEMBLE
from pipeline.yaml_model import checked_model

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Hours = Annotated[float, Field(ge=0.0, le=24 * 365)]
Percentile = Annotated[float, Field(gt=50.0, lt=100.0)]
Count = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
MOST_ROWS = 100_000  # that a policy may look back on: two months of minutes, and times are no longer than numbers are
MAX_POLICIES = 60  # that one may be chosen from: more would find one by luck

DEFAULT_DETECTORS = (
    "autoencoder",
    "vae",
    "pca",
    "energy_zscore",
    "squared_distance",
    "isolation_forest",
    "fleet_relative",
)
DEFAULT_MEMBERS = ("autoencoder", "pca", "energy_zscore")  # few that hear different things: each raises the bar for all
WINDOW_DETECTORS = ("window_autoencoder",)  # see rows before a row: judged by builds, and not in service
DETECTOR_NAMES = (*DEFAULT_DETECTORS, *WINDOW_DETECTORS, "absolute_limit")  # the last: where fleet.yaml has limits
NEURAL_DETECTORS = ("autoencoder", "vae", *WINDOW_DETECTORS)
FaultMode = Literal[
    "outer_race",
    "inner_race",
    "rolling_element",
    "imbalance",
    "misalignment",
    "looseness",
    "lubrication",
    "energy",
    "resonance_shift",
    "saturation",
]
FAULT_MODES: tuple[FaultMode, ...] = get_args(FaultMode)


def explaining(deciding: Sequence[str]) -> str:
    """Of the detectors that decide the one that explains: the first network, which reconstructs; else the first.

    >>> explaining(("pca", "vae", "autoencoder")), explaining(("pca", "isolation_forest"))
    ('vae', 'pca')
    """
    return next((name for name in deciding if name in NEURAL_DETECTORS), deciding[0])


def _known_detector(name: str) -> str:
    if name not in DETECTOR_NAMES:
        raise ValueError(f"got {name!r}, expected one of {', '.join(DETECTOR_NAMES)}")
    return name


DetectorName = Annotated[str, AfterValidator(_known_detector)]
ReleaseId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
ScoreName = Annotated[str, AfterValidator(lambda name: name if name == ENSEMBLE else _known_detector(name))]


class Section(BaseModel):
    """A part of params.yaml: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceParams(Section):
    """Where a plant's data set (or the simulated one) stands."""

    path: Annotated[str, Field(min_length=1)] = "data/demo"


class LogParams(Section):
    """What the maintenance log of a simulated fleet gets wrong, as shares of the failures."""

    late: Share = 0.15  # written down half a day to four days too late
    missing: Share = 0.0  # never written down
    wrong: Share = 0.0  # under another machine's name; and as many failures that never were


class UpkeepParams(Section):
    """What else happens to the machines of a simulated fleet, as shares of the machines."""

    never_well: Share = 0.0  # faulty from the first day to the last, and the log says nothing
    bearing_swaps: Share = 0.0  # planned: another bearing, another baseline
    moved_sensors: Share = 0.0
    moves_logged: Share = 0.5  # of the moved sensors
    planned_stops: Share = 0.0  # off for days


class DirtParams(Section):
    """Dirt in the files of a simulated fleet, as shares of the rows."""

    nan: Share = 0.0
    infinite: Share = 0.0
    negative: Share = 0.0
    flat: Share = 0.0
    stuck: Share = 0.0
    duplicate: Share = 0.0
    future: Share = 0.0  # time stamps from the future
    unordered: Share = 0.0
    missing: Share = 0.0  # in whole hours of a machine


class SimulateParams(Section):
    """A simulated fleet; the same seed gives the same bytes."""

    machines: Annotated[int, Field(ge=1, le=100_000)] = 24
    days: Annotated[float, Field(gt=0, le=3660)] = 60
    start: dt.date = dt.date(2025, 1, 1)
    interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600
    bins: Annotated[int, Field(ge=8, le=4096)] = 64
    max_hz: Annotated[float, Field(gt=0)] = 12_800.0
    failures: Annotated[int, Field(ge=0)] = 24
    modes: Annotated[tuple[FaultMode, ...], Field(min_length=1)] = FAULT_MODES  # failures take turns
    mislabelled_share: Share = 0.02  # of healthy-tagged rows: unlogged faults; late, missing and wrong log entries
    firmware_day: Annotated[float, Field(ge=0)] | None = None
    firmware_share: Share = 1.0
    firmware_logged: Share = 0.0  # of the machines that get it
    firmware_effect: Literal["rescale", "edges"] = "rescale"  # another gain and filter, or band edges that moved
    seed: int = 20250101
    log: LogParams = LogParams()
    upkeep: UpkeepParams = UpkeepParams()
    dirt: DirtParams = DirtParams()


class IngestParams(Section):
    """How a data set's files become the snapshot `data/raw`."""

    timezone: str | None = None  # IANA name; None: the time zone of fleet.yaml, else UTC
    time: Literal["absolute", "relative"] = "absolute"  # relative: dates are synthetic, spacing is real
    label_column: str | None = None  # 1 faulty, 0 healthy, -1 unknown; becomes the maintenance log
    max_rows: Count | None = None  # sampled beyond this: horizons, whole hours and single minutes
    looks_share: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of them, in single minutes of the training span


class ValidateParams(Section):
    """Limits of the per-row facts."""

    flat_relative_range: Annotated[float, Field(ge=0)] = 1e-6  # (max - min) / max below this: a flat spectrum
    max_energy: Annotated[float, Field(gt=0)] = 1e6
    min_energy: Annotated[float, Field(ge=0)] = 0.0  # below this a sensor is silent: its floor, where it is known
    saturation: Annotated[float, Field(gt=0)] | None = None  # largest magnitude that the sensor can tell, where known
    saturated_bins: Annotated[int, Field(ge=2)] = 3  # as many bins at one largest level: a clipped sensor
    stuck_repeats: Count = 3  # as many repeats of the same spectrum: a stuck sensor
    future_hours: Hours = 24.0  # beyond the newest row of the rest of the fleet
    max_quarantined_share: Share = 0.5
    max_missing_share: Share = 0.5  # of the rows that a machine's day should have; more is a warning
    off_share: Share = 0.02  # of the machine's usual energy: below it a day counts as off
    gain_step: Annotated[float, Field(gt=0)] = 0.3  # all bins by this share or more, from one day to the next
    step_days: Annotated[int, Field(ge=2, le=30)] = 3  # days before and after a step that must agree
    plant_share: Annotated[float, Field(ge=0.5, lt=1)] = 0.5  # of the machines on one day: beyond, the plant changed
    min_rows_per_machine: Count = 100
    min_days: Annotated[float, Field(ge=0)] = 2.0  # the set's span; less is a warning


class AfterChangeParams(Section):
    """How the time after a change of the fleet is cut: it is short, and first has to describe every machine anew."""

    train_share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the time after the change, validation together
    calibration_share: Annotated[float, Field(gt=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _shares_leave_a_test_set(self) -> AfterChangeParams:
        _check_shares(self.train_share, self.calibration_share)
        return self


def _check_shares(train_share: float, calibration_share: float) -> None:
    if train_share + calibration_share >= 0.95:
        total = train_share + calibration_share
        raise ValueError(f"got train_share + calibration_share = {total:.2f}, expected below 0.95")


class SplitParams(Section):
    """Log-based exclusion, baseline epochs, and the roles of rows."""

    horizon_hours: Hours = 168.0
    run_in_hours: Hours = 24.0
    purge_hours: Hours | None = None  # None: the horizon
    train_share: Annotated[float, Field(gt=0, lt=1)] = 0.3  # of the time span, train and validation together
    calibration_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the train span, in blocks of whole days
    unseen_machine_share: Annotated[float, Field(ge=0, lt=1)] = 0.12
    tune_failure_share: Share = 0.4
    boundaries: Literal["calendar", "machine"] = "calendar"
    changed_at: dt.datetime | None = None  # the fleet changed here: a new epoch, calibrated anew (provisional release)
    changed_machines: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # that changed; None: all
    after_change: AfterChangeParams = AfterChangeParams()

    @model_validator(mode="after")
    def _shares_leave_a_test_set(self) -> SplitParams:
        _check_shares(self.train_share, self.calibration_share)
        return self

    @model_validator(mode="after")
    def _machines_changed_at_some_time(self) -> SplitParams:
        if self.changed_machines is not None and self.changed_at is None:
            raise ValueError("got changed_machines without changed_at, expected the time of their change")
        return self

    @property
    def shares(self) -> SplitParams | AfterChangeParams:
        """What cuts: the shares of the whole span, or those of the time after a change."""
        return self if self.changed_at is None else self.after_change

    @property
    def purge(self) -> float:
        """Hours between roles."""
        return self.horizon_hours if self.purge_hours is None else self.purge_hours


class CleanParams(Section):
    """Statistical removal of contaminated episodes, in train and validation rows."""

    method: Literal["refine", "trimmed", "none"] = "refine"  # cross-fitted refinement, one trimmed refit, or nothing
    model: Literal["pca", "autoencoder"] = "pca"  # of what healthy episodes have in common
    components: Count = 8  # of it, or latent dimensions
    episode_hours: Annotated[float, Field(gt=0)] = 6.0
    remove_above: Annotated[float, Field(gt=1)] = 4.5  # robust deviations; neighbours of such an episode: half of it
    max_rounds: Annotated[int, Field(ge=1, le=20)] = 5
    max_removed_share: Share = 0.15  # beyond it the stage stops
    min_kept_share: Share = 0.5  # of each machine's rows
    gate_rows: Annotated[int, Field(ge=1000)] = 100_000  # that train the gate's quick detector, and that judge it


class OptimiserParams(Section):
    """Training of the neural detectors."""

    name: Literal["adamw", "rmsprop", "sgd", "adagrad"] = "adamw"
    schedule: Literal["one_cycle", "cosine", "constant", "step"] = "one_cycle"  # of the learning rate
    max_epochs: Count = 16
    patience: Count = 4
    batch_rows: Annotated[int, Field(ge=8)] = 1024
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None  # of sgd (None: 0.9) and rmsprop (None: 0)
    step_epochs: Count = 10  # of the schedule `step`: after as many epochs
    step_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1  # the learning rate is multiplied by this
    min_improvement: Annotated[float, Field(ge=0)] = 2e-3  # relative, of the validation loss

    @model_validator(mode="after")
    def _momentum_has_a_meaning(self) -> OptimiserParams:
        if self.momentum is not None and self.name not in ("sgd", "rmsprop"):
            raise ValueError(f"got momentum={self.momentum} with {self.name}, expected it with sgd or rmsprop only")
        return self

    def fine_tuning(self, settings: FineTuneParams) -> OptimiserParams:
        """The same from weights that have been trained before: a lower learning rate, and fewer epochs."""
        rate, epochs = self.learning_rate * settings.learning_rate_factor, min(self.max_epochs, settings.max_epochs)
        return self.model_copy(update={"learning_rate": rate, "max_epochs": epochs})


class NoiseParams(Section):
    """What is done to training rows, and only to them, before the network must restore them."""

    gaussian: Annotated[float, Field(ge=0, le=10)] = 0.0  # standard deviation of added noise, in robust deviations
    masking: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the numbers, each for itself: set to their healthy location
    bin_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the bins: set to it in all rows of a batch at once

    @property
    def any(self) -> bool:
        """Is anything done to them?"""
        return max(self.gaussian, self.masking, self.bin_dropout) > 0


class SparseParams(Section):
    """Sparse code: the KL divergence of each number's mean activation over a batch from a target is minimised too.

    Ng (CS294A lecture notes, 2011). Needs a bounded code; the mean of a tanh, in (-1, 1), is mapped to (0, 1) first.
    """

    beta: Annotated[float, Field(gt=0)] = 1.0  # weight of the divergence, summed over the code, per bin
    target: Annotated[float, Field(gt=-1, lt=1)] = 0.05  # mean activation: in (0, 1) of sigmoid, in (-1, 1) of tanh


class ContractiveParams(Section):
    """Contractive code: the squared Frobenius norm of the encoder's Jacobian is minimised too (Rifai et al. 2011)."""

    weight: Annotated[float, Field(gt=0)] = 0.1  # of the norm, per bin
    projections: Annotated[int, Field(ge=1, le=64)] = 1  # random ones that estimate it where the encoder is deep


class WinnerTakeAllParams(Section):
    """Winner-take-all code: each number keeps its largest values of a batch (Makhzani and Frey, NeurIPS 2015)."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of the rows of a batch that keep a number of the code


class SupervisedParams(Section):
    """A head on the code that learns the failure mode of rows before failures of role tune; other rows are masked.

    Failures that teach choose no alert policy any more, and failures of role test never teach.
    """

    alpha: Annotated[float, Field(gt=0)] = 0.1  # weight of the cross-entropy of rows that carry a mode
    failures: Annotated[float, Field(gt=0, le=1)] = 0.5  # share of the tune failures that teach; each is whole


class NetworkParams(Section):
    """What all networks share: layers, what is minimised, how it is trained and scores."""

    architecture: str = "convolutional"
    latent: Count = 12
    layers: Annotated[tuple[Count, ...], Field(max_length=8)] = (32,)  # dense: hidden widths, mirrored in the decoder
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)] = (8, 16, 32)  # convolutional
    kernel: Annotated[int, Field(ge=3, le=15)] = 5
    activation: Literal["gelu", "relu", "tanh", "identity"] = "gelu"
    loss: Literal["mse", "huber", "gaussian", "bce"] = "mse"  # gaussian: with a learned variance of each bin
    noise: NoiseParams = NoiseParams()
    residual: Literal["weighted", "mean_squared"] = "weighted"  # by the healthy residual variance of each bin
    code_distance: Literal["auto", "mahalanobis", "neighbours"] = "auto"  # auto: neighbours for kind `features`
    score: str = "combined"
    supervised: SupervisedParams | None = None  # None: nothing is learned from failures
    restarts: Annotated[int, Field(ge=0, le=10)] = 2  # at most, from other seeds, where a code is dead
    optimiser: OptimiserParams = OptimiserParams()

    @model_validator(mode="after")
    def _odd_kernel(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"got kernel={self.kernel}, expected an odd number")
        return self


class AutoencoderParams(NetworkParams):
    """Autoencoder; what holds its code beside its width may be combined, see `_code_is_held_one_way`."""

    architecture: Literal["convolutional", "dense"] = "convolutional"
    score: Literal["combined", "residual", "latent"] = "combined"
    code_activation: Literal["auto", "identity", "sigmoid", "tanh", "relu"] = "auto"  # auto: as the objective needs it
    sparse: SparseParams | None = None
    contractive: ContractiveParams | None = None
    winner_take_all: WinnerTakeAllParams | None = None

    @model_validator(mode="after")
    def _code_is_held_one_way(self) -> Self:
        others = [name for name in ("sparse", "contractive", "supervised") if getattr(self, name) is not None]
        if self.winner_take_all is not None and others:
            # what a row's code is depends on its batch: it has no Jacobian, no mean activation, and no mode by itself
            raise ValueError(f"got winner_take_all with {' and '.join(others)}, expected one or the other")
        activation = self.code_of
        if self.winner_take_all is not None and activation != "relu":
            raise ValueError(f"got winner_take_all with code_activation={activation}, expected relu (or auto)")
        if self.sparse is not None:
            if activation not in ("sigmoid", "tanh"):
                raise ValueError(f"got sparse with code_activation={activation}, expected sigmoid or tanh (or auto)")
            if activation == "sigmoid" and self.sparse.target <= 0:
                got = f"sparse.target={self.sparse.target} with a sigmoid code"
                raise ValueError(f"got {got}, expected greater than 0 (or code_activation: tanh)")
        return self

    @property
    def code_of(self) -> Literal["identity", "sigmoid", "tanh", "relu"]:
        """What is applied to the encoder's last layer: `auto` resolved.

        >>> AutoencoderParams(sparse=SparseParams()).code_of, AutoencoderParams().code_of
        ('sigmoid', 'identity')
        """
        if self.code_activation != "auto":
            return self.code_activation
        if self.winner_take_all is not None:
            return "relu"
        return "sigmoid" if self.sparse is not None or self.contractive is not None else "identity"

    @property
    def is_regularised(self) -> bool:
        """Does anything beside its width keep the code from copying the input?"""
        held = (self.sparse, self.contractive, self.winner_take_all)
        return self.noise.any or any(objective is not None for objective in held)


class VaeParams(NetworkParams):
    """Variational autoencoder."""

    architecture: Literal["convolutional", "dense"] = "convolutional"
    beta: Annotated[float, Field(gt=0)] = 0.2
    annealing: Literal["none", "linear", "cyclical"] = "linear"  # of beta
    warmup_epochs: Annotated[int, Field(ge=0)] = 5  # linear: until beta is reached
    cycles: Annotated[int, Field(ge=1, le=100)] = 4  # cyclical: over max_epochs
    score: Literal["combined", "residual", "latent", "elbo"] = "combined"
    draws: Annotated[int, Field(ge=0, le=256)] = 0  # fixed draws of the code that elbo is a mean over; 0: at the mean

    @model_validator(mode="after")
    def _cycles_have_room(self) -> Self:
        if self.annealing == "cyclical" and self.optimiser.max_epochs < 2 * self.cycles:
            raise ValueError(
                f"got cycles={self.cycles} in max_epochs={self.optimiser.max_epochs}, expected 2 epochs each"
            )
        return self


class WindowParams(NetworkParams):
    """Autoencoder of windows: consecutive rows of one machine. The score of a row is that of the window it ends."""

    architecture: Literal["lstm", "convolutional"] = "lstm"  # convolutional: over rows and bins, with `channels`
    window: Annotated[int, Field(ge=2, le=128)] = 8  # rows
    max_gap: Annotated[float, Field(ge=1)] = 3.0  # usual intervals of the machine: a longer step begins a new run
    hidden: Annotated[int, Field(ge=1, le=4096)] = 64  # lstm: numbers that it remembers
    latent: Count = 16
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)] = (8, 16)
    score: Literal["combined", "residual", "latent"] = "combined"

    @model_validator(mode="after")
    def _no_lessons(self) -> Self:
        if self.supervised is not None:
            raise ValueError("got supervised, expected it of autoencoder or vae: a window has no failure mode")
        return self


class PcaParams(Section):
    """Principal components with T squared and Q."""

    variance_kept: Annotated[float, Field(gt=0, lt=1)] = 0.9
    max_components: Count = 32


class EnergyParams(Section):
    """Two-sided z-score of the log energy."""

    two_sided: bool = True


class DistanceParams(Section):
    """Squared distance from the machine's baseline."""


class ForestParams(Section):
    """Isolation forest."""

    trees: Annotated[int, Field(ge=1, le=10_000)] = 100
    sample_rows: Annotated[int, Field(ge=2, le=4096)] = 256  # that each tree sees; more cuts away less of what is odd
    max_features: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the bins that each tree sees


class FleetRelativeParams(Section):
    """Distance of a machine from its peers in the same condition."""


class AbsoluteLimitParams(Section):
    """Velocity over the limits of fleet.yaml, which are facts of the machines and stand there."""


class BaselineParams(Section):
    """Location and scale of each machine, epoch and operating condition, shrunk to the fleet.

    An independent look is a row, or as many rows as the data say where those of one hour are alike: twenty rows within
    three minutes are two looks or so, a row an hour is a look each (see `pipeline/detectors/looks.py`).
    """

    scope: Literal["global", "machine", "machine+condition"] = "machine+condition"
    condition_column: str = "condition"  # the context column that names conditions; absent: all rows are of one
    shrink_rows: Annotated[float, Field(ge=0)] = 30.0  # looks that the fleet's scale weighs; rows per look, at least
    min_rows: Count = 20  # independent looks, below which a wider baseline leans on the fleet, marked

    @property
    def conditions_from(self) -> str | None:
        """The column that conditions are read from; None where the scope ignores them."""
        return self.condition_column if self.scope == "machine+condition" else None


class FineTuneParams(Section):
    """What is different where the networks start from the weights of `base_release`."""

    learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the network's own learning rate
    max_epochs: Count = 6  # where the network's own are not fewer


class TrainParams(Section):
    """One section per detector, and what they share."""

    device: Device = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the networks; auto: bfloat16 where the chip has it
    compile: Literal["auto", "off"] = "auto"  # torch.compile, on CUDA only
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    score_batch_rows: Annotated[int, Field(ge=64)] = 4096  # every score is computed in a padded batch of this size
    max_rows: Count = 4_000_000  # beyond this, training rows are drawn in whole hours
    baseline: BaselineParams = BaselineParams()
    fine_tune: FineTuneParams = FineTuneParams()
    autoencoder: AutoencoderParams = AutoencoderParams()
    vae: VaeParams = VaeParams()
    window_autoencoder: WindowParams = WindowParams()
    pca: PcaParams = PcaParams()
    energy_zscore: EnergyParams = EnergyParams()
    squared_distance: DistanceParams = DistanceParams()
    isolation_forest: ForestParams = ForestParams()
    fleet_relative: FleetRelativeParams = FleetRelativeParams()
    absolute_limit: AbsoluteLimitParams = AbsoluteLimitParams()

    @property
    def networks(self) -> tuple[NetworkParams, ...]:
        """The sections of networks that may learn from failures."""
        return self.autoencoder, self.vae

    @property
    def teaching_share(self) -> float:
        """Share of the tune failures that teach networks their mode; 0: none.

        >>> TrainParams().teaching_share
        0.0
        """
        return max((network.supervised.failures for network in self.networks if network.supervised), default=0.0)


class PolicyParams(Section):
    """From exceedances to alerts."""

    k: Count = 3
    n: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 5
    window_minutes: Annotated[float, Field(gt=0)] = 120.0  # rows older than this do not count
    gap_minutes: Annotated[float, Field(gt=0)] = 30.0  # alert rows closer than this are one episode
    cool_down_hours: Hours = 0.0  # after an alert closed, before another opens; a first page still does
    no_data_hours: Annotated[float, Field(gt=0, le=24 * 365)] | None = 24.0  # of silence open an alert; None: never

    @model_validator(mode="after")
    def _k_of_n(self) -> PolicyParams:
        if self.k > self.n:
            raise ValueError(f"got k={self.k}, expected at most n={self.n}")
        return self


class EnsembleParams(Section):
    """What several detectors say of a row together; there is one as soon as there are two members."""

    members: tuple[DetectorName, ...] | None = None  # None: DEFAULT_MEMBERS that are detectors; where none two are, all
    agree: Annotated[int, Field(ge=1, le=16)] = 1  # members that must find a row as rare as the score says

    def heard(self, detectors: Iterable[str]) -> tuple[str, ...]:
        """Members among some detectors; those that see windows have no score in service.

        >>> EnsembleParams().heard(DEFAULT_DETECTORS)
        ('autoencoder', 'pca', 'energy_zscore')
        >>> EnsembleParams().heard(("vae", "pca", "window_autoencoder"))
        ('vae', 'pca')
        """
        single = [name for name in detectors if name not in WINDOW_DETECTORS]
        usual = [name for name in DEFAULT_MEMBERS if name in single]
        asked = self.members or (usual if len(usual) > 1 else single)
        return tuple(name for name in asked if name in single)


class ChoiceParams(Section):
    """What the alert policy is chosen from, on the tune failures; the rest of it is as `policy` says."""

    enabled: bool = True  # false: page_percentile and policy stand as they are
    page_percentiles: Annotated[tuple[Percentile, ...], Field(min_length=1)] = (99.8, 99.9, 99.95, 99.98, 99.99)
    k_of_n: Annotated[tuple[tuple[Count, Count], ...], Field(min_length=1)] = (
        (1, 1),
        (3, 5),
        (12, 20),
        (30, 120),
        (36, 360),
        (180, 360),
    )
    longest_hours: Annotated[float, Field(gt=0)] = 6.0  # that n rows may span; longer ones are left out
    cool_down_hours: Annotated[tuple[Hours, ...], Field(min_length=1)] = (0.0, 24.0)

    @model_validator(mode="after")
    def _few_enough(self) -> ChoiceParams:
        for k, n in self.k_of_n:
            if k > n:
                raise ValueError(f"got [{k}, {n}] in k_of_n, expected k at most n")
        count = len(self.page_percentiles) * len(self.k_of_n) * len(self.cool_down_hours)
        if count > MAX_POLICIES:
            raise ValueError(f"got {count} policies, expected at most {MAX_POLICIES}")
        return self


class CalibrateParams(Section):
    """Tiers as percentiles of healthy calibration scores, and the alert policy."""

    low_percentile: Percentile = 99.5
    page_percentile: Percentile = 99.95  # with fewer than 20,000 rows (ten above it) from a tail fitted to the largest
    more_percentiles: Annotated[tuple[Percentile, ...], Field(max_length=20)] = ()  # told beside the tiers
    draws: Annotated[int, Field(ge=50, le=10_000)] = 500  # of machines, for the intervals
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.9  # of the intervals
    levels: Literal["fleet", "condition", "machine"] = "fleet"  # whose healthy scores are brought to one level
    ensemble: EnsembleParams = EnsembleParams()
    policy: PolicyParams = PolicyParams()
    choice: ChoiceParams = ChoiceParams()  # what the policy and the page percentile are chosen from

    @model_validator(mode="after")
    def _ordered(self) -> CalibrateParams:
        if self.low_percentile >= self.page_percentile:
            low, page = self.low_percentile, self.page_percentile
            raise ValueError(f"got low_percentile={low}, expected below page_percentile={page}")
        return self


class EvaluateParams(Section):
    """The comparison of detectors."""

    false_episodes_per_machine_day: Annotated[float, Field(gt=0)] = 0.02  # 12 a day for 600 machines
    chance_shifts: Annotated[int, Field(ge=20)] = 200
    use_truth: bool = True  # of a simulation, where there is one


class ReleaseParams(Section):
    """What goes into service."""

    detector: ScoreName = "ensemble"  # its tiers raise alerts; or one detector
    reference_rows: Annotated[int, Field(ge=100, le=400_000)] = 40_000  # of drift, the same of each machine and day


class ReportParams(Section):
    """The report."""

    title: str = "Hearken"
    max_failures: Count = 100


class ScoreParams(Section):
    """Scoring of what arrives, with the release in service."""

    shard_rows: Annotated[int, Field(ge=1)] = (
        2_000_000  # small uploads are gathered up to so many; larger ones stand alone
    )
    future_hours: Annotated[float, Field(ge=0)] = 2.0  # rows later than that after their arrival raise no alert
    lease_minutes: Annotated[float, Field(gt=0)] = 15.0  # without a sign of life: another scorer takes the shard over
    attempts: Annotated[int, Field(ge=1)] = 5  # of a shard whose scorer died; then its uploads are set aside
    engine: Literal["local", "dask"] = "local"
    dask_address: str | None = None  # of a scheduler; None: a cluster of processes on this machine
    dask_workers: Annotated[int, Field(ge=1)] = 2  # of that cluster
    late_after_minutes: Annotated[float, Field(gt=0)] = 30.0  # `hearken status` complains
    compact_after_days: Annotated[float, Field(ge=0)] | None = (
        2.0  # a day of the score log becomes one file; null: never
    )
    keep_days: Annotated[float, Field(gt=0)] | None = None  # of the score log; null: all


class NotifyParams(Section):
    """When people are told of alerts: pages at once, the others once a day. To whom is no setting but a secret."""

    digest_hour: Annotated[int, Field(ge=0, le=23)] = 6  # UTC
    retry_minutes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=20)] = (
        1.0,
        5.0,
        30.0,
        120.0,  # the last pause repeats
    )
    keep_trying_hours: Annotated[float, Field(gt=0, le=24 * 30)] = 24.0  # then a notice is given up


class ColumnParams(Section):
    """How one column of the comparison is measured, and beyond which distance it has drifted."""

    method: Literal["wasserstein", "jensenshannon"] | None = None  # None: what the release's limits are calibrated for
    threshold: Annotated[float, Field(gt=0)] | None = None  # None: calibrated on healthy history

    @model_validator(mode="after")
    def _method_has_threshold(self) -> ColumnParams:
        if self.method is not None and self.threshold is None:
            raise ValueError(f"got method={self.method} without a threshold, expected both: limits are of one method")
        return self


class MonitorParams(Section):
    """Drift of the fleet against the reference of the release in service."""

    days: Annotated[float, Field(gt=0, le=60)] = 1.0  # the window; limits of a release are calibrated for it
    max_rows: Annotated[int, Field(ge=200, le=1_000_000)] = 20_000  # sampled from the window
    columns: dict[str, ColumnParams] = {}  # by name, as reports name them; others as calibrated
    drift_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the columns beyond their limits, at least
    fleet_share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the machines, together: the fleet; fewer: a group
    group_share: Annotated[float, Field(gt=0, le=1)] = 0.15  # fewer that no context tells apart are faults
    min_group_machines: Annotated[int, Field(ge=2)] = 3
    keep_days: Annotated[float, Field(gt=0)] = 30.0  # pages of runs that found nothing; those of a drift stay


class RetrainParams(Section):
    """Retraining after a drift, or because a person asks for it."""

    promote: Literal["auto", "manual"] = "auto"  # manual: what the gate accepts waits for `hearken releases promote`
    purge_hours: Hours = 6.0  # between roles after a change
    hours_after_change: Hours = 48.0  # of rows before it begins: they describe, train, calibrate and judge
    cool_down_hours: Hours = 12.0  # from the end of one retraining to the begin of the next
    most_per_day: Annotated[int, Field(ge=1)] = 2
    attempts: Annotated[int, Field(ge=1)] = 3  # at one that was cut off or could not reach something
    lease_minutes: Annotated[float, Field(ge=1)] = 10.0  # without a sign of life it is taken for dead
    start: Literal["scratch", "champion"] = "scratch"  # champion: networks start from its weights (`base_release`)
    gpu_timeout_minutes: Annotated[float, Field(gt=0)] = 120.0
    wait_for_worker_minutes: Annotated[float, Field(ge=0)] = 10.0  # for a worker of pool `gpu` to come online
    cpu_fallback: bool = True  # none came: train where the build runs; false: fail and say so


MOST_SEEDS = 5  # each is a build of its own


class GateParams(Section):
    """When a challenger takes the champion's place; the budget of false pages stands in `evaluate`."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.9  # of the bound of false pages, and of intervals
    draws: Annotated[int, Field(ge=50, le=10_000)] = 1_000  # of machines, for the intervals
    lost_failures: Annotated[int, Field(ge=0)] = 1  # that the champion catches, of those that neither was tuned on
    shouts: Annotated[float, Field(gt=1)] = 10.0  # times the rate of its page tier: then a champion only shouts
    behind_baselines: Annotated[int, Field(ge=0)] = 0  # failures fewer than PCA, squared distance or energy catch
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 2  # challengers that must pass
    time_ratio: Annotated[float, Field(gt=0)] = 1.5  # time per row, challenger over champion
    time_rows: Annotated[int, Field(ge=100)] = 1_000  # fewer are too few to measure time
    time_rounds: Annotated[int, Field(ge=5, le=101)] = 7  # in turns; the median ratio counts
    shadow_days: Annotated[float, Field(gt=0)] = 14.0  # then a challenger that still waits is given up


class RecalibrateParams(Section):
    """New thresholds for the weights in service, from rows that are later than they."""

    promote: Literal["auto", "manual"] = "manual"  # auto: where the page tier has rows enough
    min_machine_days: Annotated[float, Field(gt=0)] = 115.0  # of healthy rows, for auto


class KeepParams(Section):
    """Which releases stay although nothing refers to them any more."""

    newest: Annotated[int, Field(ge=1)] = 5  # so many, whatever became of them
    service_days: Annotated[float, Field(ge=1)] = 90.0  # that were in service within so many days
    candidate_days: Annotated[float, Field(ge=1)] = 30.0  # candidates and shadows not older than that


class ReleasesParams(Section):
    """Releases that are no longer in service."""

    keep: KeepParams = KeepParams()


class Params(Section):
    """All of params.yaml.

    >>> Params().split.horizon_hours
    168.0
    >>> parse_params("calibrate:\\n  page_percentile: 101\\n")
    Traceback (most recent call last):
        ...
    pipeline.errors.ParamsError: params.yaml, line 2, calibrate.page_percentile: got 101, expected less than 100.
    """

    seed: int = 7
    base_release: ReleaseId | None = None  # the networks start from its weights; None: from random ones
    source: SourceParams = SourceParams()
    simulate: SimulateParams = SimulateParams()
    ingest: IngestParams = IngestParams()
    validate_: Annotated[ValidateParams, Field(alias="validate")] = ValidateParams()
    split: SplitParams = SplitParams()
    clean: CleanParams = CleanParams()
    detectors: Annotated[tuple[DetectorName, ...], Field(min_length=1)] = DEFAULT_DETECTORS
    train: TrainParams = TrainParams()
    calibrate: CalibrateParams = CalibrateParams()
    evaluate: EvaluateParams = EvaluateParams()
    release: ReleaseParams = ReleaseParams()
    report: ReportParams = ReportParams()
    score: ScoreParams = ScoreParams()
    notify: NotifyParams = NotifyParams()
    monitor: MonitorParams = MonitorParams()
    retrain: RetrainParams = RetrainParams()
    gate: GateParams = GateParams()
    recalibrate: RecalibrateParams = RecalibrateParams()
    releases: ReleasesParams = ReleasesParams()

    @model_validator(mode="after")
    def _release_detector_is_trained(self) -> Params:
        if self.release.detector not in (*self.detectors, ENSEMBLE):
            raise ValueError(f"got release.detector={self.release.detector}, expected one of detectors, or {ENSEMBLE}")
        if not self.serving_detectors:
            raise ValueError(f"got detectors={list(self.detectors)}, expected one that scores single rows, for service")
        ensemble = self.calibrate.ensemble
        members = ensemble.members or ensemble.heard(self.detectors)
        unserved = [name for name in (self.release.detector, *members) if name in WINDOW_DETECTORS]
        if unserved:
            what = "release.detector" if self.release.detector in unserved else "calibrate.ensemble.members"
            raise ValueError(f"got {what} with {unserved[0]}, which sees windows, expected detectors of single rows")
        strange = [name for name in members if name not in self.detectors]
        if strange:
            raise ValueError(f"got calibrate.ensemble.members={list(members)}, expected some of detectors")
        if self.release.detector == ENSEMBLE and len(set(members)) < 2:
            raise ValueError(f"got release.detector={ENSEMBLE} of {len(set(members))}, expected at least 2 members")
        if ensemble.agree > len(members):
            raise ValueError(f"got calibrate.ensemble.agree={ensemble.agree} of {len(members)} members")
        if len(set(self.detectors)) != len(self.detectors):
            raise ValueError(f"got detectors={list(self.detectors)}, expected no detector twice")
        return self

    @model_validator(mode="after")
    def _one_division_of_failures(self) -> Params:
        shares = {network.supervised.failures for network in self.train.networks if network.supervised is not None}
        if len(shares) > 1:
            told = " and ".join(f"{share:g}" for share in sorted(shares))
            raise ValueError(f"got supervised.failures={told} of two networks, expected the same share of both")
        return self

    @property
    def serving_detectors(self) -> tuple[str, ...]:
        """Detectors that a release holds: those that need no rows before a row."""
        return tuple(name for name in self.detectors if name not in WINDOW_DETECTORS)

    @property
    def explaining_detector(self) -> str:
        """Whose reconstructions and shares of bins are shown: the release's own detector, or one of its ensemble."""
        if self.release.detector != ENSEMBLE:
            return self.release.detector
        return explaining(self.calibrate.ensemble.heard(self.detectors))


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: no such file, not YAML, an unknown key, a value out of range; with the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ParamsError(f"{path}: got no readable file ({error.strerror}), expected the settings.") from None
    return parse_params(text, where=path.name)


def parse_params(text: str, where: str = "params.yaml") -> Params:
    """Check the text of a params.yaml; see load_params."""
    params, findings = checked_model(text, Params, where)
    if params is None:
        raise ParamsError("\n".join(f"{f.where}, {f.what}: got {f.got}, expected {f.expected}." for f in findings))
    return params
