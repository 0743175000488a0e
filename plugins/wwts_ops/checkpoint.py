"""A checkpoint that somebody trained elsewhere, made into a tagger: weights and labels are read as untrusted files.

What a file of weights may be: a state dict, or one below ``state_dict``, ``model`` or ``model_state_dict``; as
``.safetensors``, or as torch writes it and reads it back without running what is pickled there. Everything about it
that does not fit is told in one error, and nothing is left out without a note.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from wwts_ops import registration, tagger
from wwts_ops import taxonomy as taxonomies
from wwts_ops.errors import WwtsError
from wwts_ops.provenance import user
from wwts_ops.settings import Settings
from wwts_ops.storage import Store
from wwts_ops.tagger import Head, Tagger
from wwts_ops.taxonomy import Label, Taxonomy
from wwts_ops.tracking import ModelVersion

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wwts_ops.backbones.torchvision_models import TorchvisionModel

log = structlog.get_logger(__name__)

FAMILIES = ("torchvision",)
#: Bytes. The largest architecture with its optimizer's two moments beside it is 7.6 GB.
_MOST_WEIGHTS = 8 * 2**30
#: ONNX keeps a whole graph in one message of at most 2 GiB.
_MOST_GRAPH = 2**31 - 2**24
_MOST_LABEL_BYTES, _MOST_LABELS, _LONGEST_NAME = 16 * 2**20, 200_000, 200
#: Names told of one kind of fault; the others are counted.
_TOLD = 20
_NESTED = ("state_dict", "model_state_dict", "model")
#: Put before every name by DataParallel, by torch.compile, and by training loops that keep the network in a field.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_ID = re.compile(r"[\w.:/-]{1,200}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: How far the two halves together may be off the whole, of the largest logit: float32 sums in another order.
_TOLERANCE = 1e-4
_TRIES = 5
#: What torch's reader raises on damaged files, besides its own refusals (seen with cut files and flipped bytes).
_READ_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Request:
    """What is to be imported; None leaves a thing as the architecture has it.

    Attributes:
        family: one of ``FAMILIES``.
        arch: name of the architecture there.
        weights: ``.safetensors`` or a torch checkpoint.
        labels: a label a line, ``id<TAB>name``, or CSV as `wwts taxonomy export` writes it.
        namespace: before the colon of every label id; default: the name of the labels file.
        threshold: score (0–1] from which the model is sure, the same for every label.
        short_side: pixels of a picture's short side.
        input: pixels of the square cut out of it.
        resize: ``bilinear`` or ``bicubic``.
        normalize: ``imagenet``, ``half`` or ``none``.
    """

    family: str
    arch: str
    weights: Path
    labels: Path
    namespace: str | None = None
    threshold: float = tagger.DEFAULT_THRESHOLD
    short_side: int | None = None
    input: int | None = None
    resize: str | None = None
    normalize: str | None = None


@dataclass(frozen=True)
class Imported:
    """What came of it.

    Attributes:
        model: the registered version.
        new_labels: how many labels the taxonomy did not know.
        taxonomy: version in force now.
        existed: the very same model was registered before; it was not registered again.
    """

    model: ModelVersion
    new_labels: int
    taxonomy: str
    existed: bool


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that fits in every way; nothing of it is in the store or in MLflow yet.

    Attributes:
        request: what was asked for.
        labels: of the file.
        tagger: in a temporary folder.
        notes: what was done to the file's content, one sentence each.
    """

    request: Request
    labels: tuple[Label, ...]
    tagger: Tagger
    notes: tuple[str, ...]


@contextmanager
def prepared(settings: Settings, request: Request) -> Iterator[Prepared]:
    """Checks everything and makes the tagger, in a temporary folder that is gone when the block ends.

    Raises:
        WwtsError: when anything about it does not fit.
    """
    labels = read_labels(request.labels, request.namespace)
    names = taxonomies.current(Store.of(settings)) or taxonomies.embedded(settings.forced_review)
    _new_labels(names, labels, request.labels)
    with tempfile.TemporaryDirectory(prefix="wwts-import-") as name:
        built, notes = build(Path(name), request, tuple(label.label_id for label in labels))
        yield Prepared(request, labels, built, notes)


def register(settings: Settings, ready: Prepared) -> Imported:
    """Puts the labels into the taxonomy, then registers the tagger as a new version, without an alias.

    Killed in between, there are labels that no model gives yet; done again, it ends the same.

    Raises:
        WwtsError: when somebody gave the labels other names meanwhile.
        UnavailableError: when store or MLflow do not answer.
    """
    added, names = _put_labels(Store.of(settings), settings, ready)
    found = registration.registered(settings, ready.tagger.sha256)
    model = found or registration.register(settings, _candidate(ready, names))
    log.info("checkpoint_imported", model=model.name, version=model.version, backbone=ready.tagger.recipe.backbone)
    return Imported(model, added, names.version, existed=found is not None)


def build(folder: Path, request: Request, label_ids: tuple[str, ...]) -> tuple[Tagger, tuple[str, ...]]:
    """The tagger of a checkpoint, in the empty ``folder``, and notes on what was done to it.

    Raises:
        WwtsError: when architecture, weights and labels do not fit each other.
    """
    from wwts_ops.backbones import torchvision_models as family

    if request.family not in FAMILIES:
        raise WwtsError(f"There is no family {request.family!r}; this version imports {', '.join(FAMILIES)}.")
    if not 0 < request.threshold <= 1:
        raise WwtsError(f"The threshold is {request.threshold}; it must be above 0 and at most 1.")
    family.check(request.arch)
    normalize = request.normalize or family.default_normalization(request.arch)
    if normalize not in family.NORMALIZATIONS:
        raise WwtsError(f"There is no normalization {normalize!r}; take one of {', '.join(family.NORMALIZATIONS)}.")
    variant = family.Variant(request.arch, request.short_side, request.input, request.resize)
    backbone = family.made(variant, len(label_ids))
    body = family.build(request.arch, len(label_ids), backbone.recipe.input)
    _check_size(body, request.arch)
    notes = _load(body, request, len(label_ids))
    if request.normalize is None and family.normalizes_itself(request.arch):
        notes += (f"If {request.arch} was trained on from torchvision's weights, give --normalize half.",)
    state, weight, bias = _split(backbone, body, family.NORMALIZATIONS[normalize])
    import numpy as np

    thresholds = np.full(len(label_ids), request.threshold, dtype=np.float32)
    return tagger.save(folder, backbone, state, Head(label_ids, thresholds, weight, bias)), notes


# ------------------------------------------------------------------ labels


def read_labels(path: Path, namespace: str | None) -> tuple[Label, ...]:
    """The labels of a file, in the order of the model's outputs.

    Raises:
        WwtsError: naming the line, when one is empty, too long or no text, or an id occurs twice.
    """
    with _opened(path, _MOST_LABEL_BYTES) as file:
        data = file.read(_MOST_LABEL_BYTES + 1)
    text = _decoded(data, path)
    if text.startswith(",".join(taxonomies.CSV_COLUMNS[:2])):
        labels = taxonomies.from_csv(data)
    else:
        labels = tuple(_lines(text, path, _namespace(path, namespace)))
    if not 2 <= len(labels) <= _MOST_LABELS:
        raise WwtsError(f"{path} names {len(labels):,} labels; a model has between 2 and {_MOST_LABELS:,}.")
    taxonomies.check(labels)
    return labels


def _decoded(data: bytes, path: Path) -> str:
    # Chinese Windows saves plain text in GB18030.
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise WwtsError(f"{path} is neither UTF-8 nor GB18030 text; save it as UTF-8.")


def _lines(text: str, path: Path, namespace: str) -> Iterable[Label]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    with_ids = "\t" in lines[0]
    for number, line in enumerate(lines, start=1):
        identity, tab, name = line.partition("\t") if with_ids else (str(number - 1), "", line)
        identity, name = identity.strip(), name.strip()
        where = f"{path}, line {number}"
        if not name or not identity or bool(tab) != with_ids:
            raise WwtsError(
                f"{where}: there must be {'an id, a tab and a name' if with_ids else 'a name'}, not {line!r}."
            )
        if _CONTROL.search(name) or len(name) > _LONGEST_NAME:
            raise WwtsError(f"{where}: a name is text of at most {_LONGEST_NAME} characters, not {name[:60]!r}.")
        label_id = identity if ":" in identity else f"{namespace}:{identity}"
        if not _ID.fullmatch(label_id):
            raise WwtsError(f"{where}: {label_id[:60]!r} cannot be a label id: letters, digits and . _ - / : only.")
        yield Label(label_id, name)


def _namespace(path: Path, given: str | None) -> str:
    if given is None:
        return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "labels"
    if not re.fullmatch(r"[\w.-]{1,60}", given):
        raise WwtsError(f"{given!r} cannot be a namespace; take up to 60 letters, digits and . _ -, such as shop2026.")
    return given


def _new_labels(before: Taxonomy, labels: Iterable[Label], path: Path) -> dict[str, Label]:
    """Those that ``before`` does not have; refuses ids that mean something else there."""
    wanted = {label.label_id: label for label in labels}
    others = [
        f"{label.label_id} is {known.label_zh} there and {label.label_zh} here"
        for label in wanted.values()
        if (known := before.by_id.get(label.label_id)) and known.label_zh != label.label_zh
    ]
    if others:
        raise WwtsError(
            f"{path} gives other names to labels that the taxonomy has, so these are other labels: "
            f"{_shortened(others, 5)}; choose another --namespace."
        )
    return {label_id: label for label_id, label in wanted.items() if label_id not in before.by_id}


def _put_labels(store: Store, settings: Settings, ready: Prepared) -> tuple[int, Taxonomy]:
    """How many labels were new, and the taxonomy with all of them."""
    for attempt in range(1, _TRIES + 1):
        before = taxonomies.ensure(store, settings.forced_review)
        added = _new_labels(before, ready.labels, ready.request.labels)
        if not added:
            break
        try:
            return len(added), taxonomies.edit(store, user(), added)
        except taxonomies.ChangedError:
            if attempt == _TRIES:
                raise
    return 0, before


# ------------------------------------------------------------------ weights


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors of a file by name, prefixes taken off, and notes on what was done for that.

    Raises:
        WwtsError: when it is too large, damaged, no file of weights, or would have to run code to be opened.
    """
    with _opened(path, _MOST_WEIGHTS) as file:
        start = file.read(4)
    if path.suffix.lower() == ".safetensors":
        content = _read_safetensors(path)
    else:
        if start == b"PK\3\4":
            _check_archive(path)
        content = _read_torch(path, start == b"PK\3\4")
    state, nesting = _state_dict(content, path)
    return _without_prefixes(state, nesting)


def _opened(path: Path, most: int) -> Any:
    try:
        if not path.is_file():
            raise WwtsError(f"{path} is no file.")
        size = path.stat().st_size
        if not 0 < size <= most:
            raise WwtsError(f"{path} has {size:,} bytes; between 1 and {most:,} are read.")
        return path.open("rb")
    except OSError as error:
        raise WwtsError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (*_READ_ERRORS, SafetensorError) as error:
        raise WwtsError(f"{path} is no whole safetensors file ({_first_line(error)}); copy it again.") from error


def _check_archive(path: Path) -> None:
    """Refuses an archive that would unpack to more than it is: torch writes its entries uncompressed, each once."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _READ_ERRORS as error:
        raise _no_torch_file(path) from error
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WwtsError(
            f"{path} is compressed (or TorchScript), as torch.save never does; it could unpack to any size, so it is "
            "not opened. Save the weights with torch.save(model.state_dict(), …)."
        )


def _read_torch(path: Path, mapped: bool) -> Any:  # noqa: FBT001 (torch.load's own argument)
    import pickle  # its error only: nothing is ever unpickled with it

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|class|function|global) ([\w.]+\.[\w.]+)", str(error))
        if refused is None:
            raise _no_torch_file(path) from None
        raise WwtsError(
            f"{path} holds more than weights ({refused[1]}), and opening that could run any code, so it is not opened; "
            "save the weights alone, with torch.save(model.state_dict(), …) or as .safetensors."
        ) from None
    except _READ_ERRORS:  # torch's own words advise to switch its safety off
        raise _no_torch_file(path) from None


def _no_torch_file(path: Path) -> WwtsError:
    return WwtsError(
        f"{path} is no file of weights that torch writes, or it is damaged; copy it again, or save it as .safetensors."
    )


def _state_dict(content: Any, path: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    import torch

    nesting: list[str] = []
    while isinstance(content, Mapping):
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            return content, tuple(nesting)
        inner = next((key for key in _NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None or len(nesting) == len(_NESTED):
            break
        nesting.append(inner)
        content = content[inner]
    found = f"; it holds {_shortened(map(str, content), 5)}" if isinstance(content, Mapping) and content else ""
    raise WwtsError(f"{path} holds no weights, neither by themselves nor below {', '.join(_NESTED)}{found}.")


def _without_prefixes(
    state: Mapping[str, Any], nesting: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    notes = [f"The weights were taken from below {' > '.join(nesting)!r}."] if nesting else []
    found = {str(key): value for key, value in state.items()}
    while prefix := next((each for each in _PREFIXES if all(key.startswith(each) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
        notes.append(f"{prefix!r} was taken off the front of every name.")
    return found, tuple(notes)


# ------------------------------------------------------------------ fitting


def _check_size(body: nn.Module, arch: str) -> None:
    size = sum(value.numel() * value.element_size() for value in body.state_dict().values())
    if size > _MOST_GRAPH:
        raise WwtsError(
            f"{arch} has {size / 1e9:.1f} GB of weights, and ONNX holds {_MOST_GRAPH / 1e9:.1f} GB; take a smaller one."
        )


def _load(body: nn.Module, request: Request, labels: int) -> tuple[str, ...]:
    """Fills ``body`` with the weights of the file, and tells what was done for that.

    Raises:
        WwtsError: with everything about them that does not fit.
    """
    from wwts_ops.backbones import torchvision_models as family

    raw, notes = read_weights(request.weights)
    given = {family.renamed(key): value for key, value in raw.items() if not family.training_only(request.arch, key)}
    if len(given) < len(raw):
        dropped = len(raw) - len(given)
        notes += (f"{dropped} weights of the auxiliary classifiers were left out: only training uses them.",)
    wanted = body.state_dict()
    # Counters that no recognition reads, and that torch began to save with version 0.4.1.
    counters = {key: value for key, value in wanted.items() if key.endswith(".num_batches_tracked")}
    absent = counters.keys() - given.keys()
    if absent:
        notes += (f"{len(absent)} counters (num_batches_tracked) were not in the file, and are 0.",)
    state = {**{key: counters[key] for key in absent}, **given}
    faults = [*_classifier_faults(body, given, request, labels), *_faults(wanted, state)]
    if faults:
        told = "\n".join(f"  {fault}" for fault in faults)
        raise WwtsError(
            f"{request.weights} does not fit {request.arch} with {labels:,} labels; nothing was registered:\n{told}"
        )
    body.load_state_dict(family.of_present_layout(body, state), strict=True)
    return notes


def _classifier_faults(body: nn.Module, given: Mapping[str, Any], request: Request, labels: int) -> Iterable[str]:
    """Whether the file's last layer makes as many scores as there are labels."""
    import torch
    from torch import nn

    kinds = (nn.Linear, nn.Conv2d)
    head = [name for name, module in body.named_modules() if isinstance(module, kinds)][-1]
    weight = given.get(f"{head}.weight")
    if isinstance(weight, torch.Tensor) and weight.dim() and weight.shape[0] != labels:
        yield (
            f"its classifier {head} has {weight.shape[0]:,} outputs, and {request.labels} names {labels:,} labels: "
            "there must be one a line, in the order of training"
        )


def _faults(wanted: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> Iterable[str]:
    """Every fault of ``given`` of each kind, one line a kind."""
    yield from _told("missing", [f"{key} {_shape(wanted[key])}" for key in wanted if key not in given])
    yield from _told("unexpected", [f"{key} {_shape(given[key])}" for key in given if key not in wanted])
    shared = {key: (wanted[key], given[key]) for key in wanted if key in given}
    odd = {key: pair for key, pair in shared.items() if not _alike(*pair)}
    yield from _told(
        "of another shape or kind",
        [f"{key} is {_shape(have)} and must be {_shape(want)}" for key, (want, have) in odd.items()],
    )
    # Looked at last: only what has the shape it should is ever laid out in memory.
    broken = [key for key, (want, have) in shared.items() if key not in odd and not _finite(have, want)]
    yield from _told("with NaN or infinite numbers", broken)


def _alike(want: torch.Tensor, have: Any) -> bool:
    import torch

    return (
        isinstance(have, torch.Tensor)
        and have.shape == want.shape
        and have.layout is torch.strided
        and not (have.is_meta or have.is_quantized or have.is_complex())
        and (have.is_floating_point() or not want.is_floating_point())
    )


def _finite(have: torch.Tensor, want: torch.Tensor) -> bool:
    import torch

    return bool(torch.isfinite(have.to(want.dtype)).all())


def _shape(value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return f"({type(value).__name__})"
    kind = "" if value.dtype == torch.float32 else f" {str(value.dtype).removeprefix('torch.')}"
    return f"{list(value.shape)}{kind}"


def _told(kind: str, names: list[str]) -> Iterable[str]:
    if names:
        yield f"{kind} ({len(names):,}): {_shortened(names, _TOLD)}"


def _shortened(names: Iterable[str], most: int) -> str:
    # Names come from untrusted files, and go to terminals and logs.
    found = ["".join(each if each.isprintable() else "?" for each in name)[:200] for name in names]
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def _split(
    backbone: TorchvisionModel, body: nn.Module, normalization: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Weights of the backbone, and weight and bias of the head; tried out: together they are the whole.

    Raises:
        WwtsError: when they are not, or the network cannot look at such a square.
    """
    import torch

    from wwts_ops.backbones import torchvision_models as family

    side, arch = backbone.recipe.input, backbone.arch
    mean, std = (torch.tensor(values) for values in normalization)
    pixels = torch.randint(0, 256, (2, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    name = family.head_of(body)
    try:
        with torch.inference_mode():
            whole = body(family.normalized(pixels, mean, std))
            weight, bias = _head(body, name, whole.shape[1])
            network = family.Network(body, name).eval()
            network.mean.copy_(mean)
            network.std.copy_(std)
            embedding = network(pixels)
            scores = embedding @ weight.T + bias
    except (RuntimeError, AssertionError, ValueError) as error:
        raise WwtsError(f"{arch} cannot look at a square of {side} pixels: {_first_line(error)}") from error
    if not torch.isfinite(embedding.to(torch.float16)).all():
        raise WwtsError(f"The embeddings of {arch} with these weights are too large for float16; they cannot be kept.")
    if not torch.allclose(scores, whole, rtol=0, atol=_TOLERANCE * max(1.0, float(whole.abs().max()))):
        raise WwtsError(f"{arch} cannot be cut in two: backbone and head together give other scores than the whole.")
    return network.state_dict(), weight.numpy(), bias.numpy()


def _head(body: nn.Module, name: str | None, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the layer ``name``; without one, what adds up the two halves of logits."""
    import torch

    if name is None:
        return torch.eye(labels).repeat(1, 2), torch.zeros(labels)
    layer: Any = body.get_submodule(name)
    weight = layer.weight.detach().clone()
    return weight, torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()


# ------------------------------------------------------------------ registration


def _candidate(ready: Prepared, names: Taxonomy) -> registration.Candidate:
    request, built = ready.request, ready.tagger
    labels = tuple(
        replace(names.by_id[label_id], forced_review=names.forced_reason(label_id) is not None)
        for label_id in built.label_ids
    )
    return registration.Candidate(
        tagger=built,
        labels=labels,
        origin=f"import {request.family} {request.arch}",
        params={
            "weights": request.weights.name,
            "weights_sha256": _sha256(request.weights),
            "labels_file": request.labels.name,
            "labels_sha256": _sha256(request.labels),
            "threshold": request.threshold,
            "normalize": request.normalize or "the architecture's own",
        },
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
