"""The sections of an experiment: what a file may say about each part of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from dfl_unlearn import _validate
from dfl_unlearn.data.forget import ForgetKind, ForgetRequest, Normalization
from dfl_unlearn.errors import InvalidArgumentError, UnknownNameError
from dfl_unlearn.evaluation.metrics import metrics


@dataclass(frozen=True, kw_only=True)
class Section:
    """A registered name and the fields it is built with.

    Attributes:
        use: The name.
        fields: Its keyword arguments; in a file they stand beside ``use``.
    """

    use: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TopologySection(Section):
    """Who talks to whom.

    Attributes:
        mixing: Name of the mixing rule, or None for the topology's own.
    """

    positional: ClassVar[bool] = True

    use: str = "ring"
    mixing: str | None = None


@dataclass(frozen=True, kw_only=True)
class GraphForm:
    """A pinned graph or a graph file in the place of a family of networks.

    Attributes:
        use: Name of a pinned graph, e.g. ``karate-34``, or the path of a file.
        mixing: Name of the mixing rule; None is Metropolis-Hastings.
        directed: Whether arcs stay arcs.
        make_undirected: Whether arcs become edges.
        strict: Whether self-loops are errors.
    """

    use: str
    mixing: str | None = None
    directed: bool = False
    make_undirected: bool = False
    strict: bool = False

    def build(self) -> TopologySection:
        """Return the section that ``load_topology`` is called with."""
        options = {
            "directed": self.directed,
            "make_undirected": self.make_undirected,
            "strict": self.strict,
        }
        return TopologySection(use=self.use, mixing=self.mixing, fields=options)


@dataclass(frozen=True, kw_only=True)
class PartitionSection(Section):
    """How the rows are split among the peers."""

    use: str = "iid"


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """What the peers hold; their number is the topology's.

    Attributes:
        partition: The split.
        seed: Seed of the split; None is the experiment's.
    """

    use: str = "digits"
    partition: PartitionSection = field(default_factory=PartitionSection)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """What every peer trains."""

    use: str = "logistic"


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """What is measured.

    Attributes:
        metrics: Registered names, or ``default``.
        reference: Whether the network is trained again without the forgotten data, to
            compare with.
    """

    metrics: Literal["default"] | tuple[str, ...] = "default"
    reference: bool = True

    def __post_init__(self) -> None:
        """Check that every metric is registered."""
        _validate.of_type(bool, reference=self.reference)
        if self.metrics != "default":
            for name in self.metrics:
                if name not in metrics:
                    raise UnknownNameError(
                        f"metrics: must be among {', '.join(metrics.names())}, got "
                        f"{_validate.show(name)}"
                    )


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """Which pictures are written.

    Attributes:
        figures: File formats of the figures; none are drawn without one. ``gif`` adds
            ``influence.gif``, the network moving through the rounds.
        html: Whether ``report.html`` is written.
        tensorboard: Whether event files are written to ``tensorboard/`` in the run
            folder; see ``engine.tracking``.
    """

    figures: tuple[Literal["png", "svg", "pdf", "gif"], ...] = ("png",)
    html: bool = True
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class RequestForm:
    """A forget request as a file gives it; see ``ForgetRequest``.

    Attributes:
        kind: ``samples``, ``class`` or ``peer``.
        peer: The owner, for ``samples`` and ``peer``.
        indices: Its row numbers, for ``samples``; or give ``fraction``.
        fraction: Share of its rows.
        class_id: The class.
        peers: The owners, for ``class``; None is every peer that holds it.
        seed: Of the draw that a fraction asks for; None is the experiment's.
        normalization: ``local_mean`` or ``fixed``.
        adaptive: Whether it was chosen after seeing released models.
        reason: For readers.
        request_id: Name on disk.
    """

    kind: ForgetKind
    peer: int | None = None
    indices: tuple[int, ...] | None = None
    fraction: float | None = None
    class_id: int | None = None
    peers: tuple[int, ...] | None = None
    seed: int = 0
    normalization: Normalization = "local_mean"
    adaptive: bool = False
    reason: str = ""
    request_id: str = ""

    def build(self) -> ForgetRequest:
        """Return the request.

        Raises:
            InvalidArgumentError: If a field is missing or does not belong to the kind.
        """
        belongs = {
            "samples": {"peer", "indices", "fraction"},
            "peer": {"peer"},
            "class": {"class_id", "peers"},
        }[self.kind]
        for name in ("peer", "indices", "fraction", "class_id", "peers"):
            if getattr(self, name) is not None and name not in belongs:
                raise InvalidArgumentError(
                    f"{name}: must be left out for kind {self.kind!r}; it takes "
                    f"{', '.join(sorted(belongs))}"
                )
        options: Any = {
            "normalization": self.normalization,
            "adaptive": self.adaptive,
            "reason": self.reason,
            "request_id": self.request_id,
        }
        if self.kind == "class":
            if self.class_id is None:
                raise InvalidArgumentError("class_id: is missing; give an integer")
            return ForgetRequest.class_(self.class_id, self.peers, **options)
        if self.peer is None:
            raise InvalidArgumentError("peer: is missing; give an integer")
        if self.kind == "peer":
            return ForgetRequest.whole_peer(self.peer, **options)
        return ForgetRequest.samples(
            self.peer, self.indices, self.fraction, self.seed, **options
        )

    @classmethod
    def of(cls, request: ForgetRequest) -> "RequestForm":
        """Return the form that builds the given request."""
        drawn = request.fraction is not None
        return cls(
            kind=request.kind,
            peer=request.peers[0] if request.kind != "class" else None,
            indices=request.items[0]
            if request.kind == "samples" and not drawn
            else None,
            fraction=request.fraction,
            class_id=request.class_id,
            peers=(request.peers or None) if request.kind == "class" else None,
            seed=request.seed,
            normalization=request.normalization,
            adaptive=request.adaptive,
            reason=request.reason,
            request_id=request.request_id,
        )


@dataclass(frozen=True, kw_only=True)
class RequestList:
    """A file with several requests, each under ``[[forget]]`` as in an experiment.

    Attributes:
        forget: The requests, in the order in which they are carried out.
    """

    forget: tuple[ForgetRequest, ...]

    def __post_init__(self) -> None:
        """Refuse an empty list, which asks for nothing."""
        if not self.forget:
            raise InvalidArgumentError(
                "forget: must name at least one request, got none; add [[forget]]"
            )
