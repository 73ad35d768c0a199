"""A composed config, held to the annotations of what it builds, before any data is read.

A node with a ``_target_`` is checked against the target's signature; the plain keys against the dataclasses below.
"""

import dataclasses
import functools
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

from annotated_types import Ge, MinLen
from omegaconf import DictConfig, OmegaConf
from pydantic import StringConstraints

from avrec.batch import MODALITIES
from avrec.checked import Count, Seed, annotations_of, check, shown
from avrec.errors import UserError, nearest
from avrec.evaluation.list_metrics import LIST_METRICS
from avrec.evaluation.metrics import METRICS
from avrec.run.evaluation import Baselines

_PACKAGE = Path(__file__).resolve().parent.parent
CONF = next((path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir()), _PACKAGE / "conf")
"""The config groups: in the wheel beside the code, in a checkout beside the package."""

REQUIRED = (
    *("data", "split", "score", "objective", "optimizer", "scheduler", "fusion", "item_tower", "user_tower"),
    *("datamodule", "trainer"),
)
"""The groups that a run cannot be built without; what is imported to check the first ones is light."""

_HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_FROM_DATA = ("score.bias",)
"""Where null stands for a value that the catalogue decides."""

_NAMES = [*METRICS, *LIST_METRICS]
_Metric: Any = Literal[tuple(_NAMES)]
_Baseline: Any = Literal[Baselines.NAMES]
_MetricAtK: Any = Annotated[
    str, StringConstraints(pattern=rf"^(cold/)?({'|'.join(_NAMES)})@[1-9]\d*$"), "METRIC@K, such as ndcg@10"
]


@dataclasses.dataclass
class _Evaluation:
    ks: Annotated[list[Count], MinLen(1)]
    metrics: Annotated[list[_Metric], MinLen(1)]
    validate: Annotated[list[_MetricAtK], MinLen(1)]
    slices: list[str] | None
    candidates: Mapping[str, Any] | None
    ablation: bool
    baselines: list[_Baseline]


@dataclasses.dataclass
class _Trainer:
    max_epochs: Annotated[int, Ge(-1)]
    accumulate_grad_batches: Count
    # Negatives are not gathered across processes.
    devices: Literal["auto", 1, "1"] | Annotated[list[int], MinLen(1)]


@dataclasses.dataclass
class _Run:
    seed: Seed
    ckpt: str | None
    run_dir: str
    cache_dir: str
    executor: str
    monitor: str
    report: bool
    artifacts_mib: Annotated[float, Ge(0)]
    dim: Count
    history_length: Count
    normalize: bool


def validate(cfg: DictConfig | dict[str, Any]) -> None:
    """Check every value of a run's config.

    Raises:
        UserError: the first argument that is unknown, missing, of a wrong type or out of range, by its full key.
    """
    tree: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    for schema, where in ((_Run, ""), (_Evaluation, "evaluation"), (_Trainer, "trainer")):
        given = tree.get(where) if where else tree
        if not isinstance(given, dict):
            raise _no_node(where, given, "a mapping")
        for name, annotation in annotations_of(cast("Any", schema)).items():
            _check_value(_joined(where, name), annotation, given.get(name))
    optional = {group: tree.get(group) for group in MODALITIES}
    for group in ("callbacks", "logger"):
        if not isinstance(tree.get(group) or {}, dict):
            raise _no_node(group, tree[group], "a mapping, or null")
        optional |= {f"{group}.{name}": node for name, node in (tree.get(group) or {}).items()}
    for key, node in ({group: tree.get(group) for group in REQUIRED} | optional).items():
        if not (isinstance(node, dict) and "_target_" in node) and not (key in optional and node is None):
            raise _no_node(key, node, "a mapping with _target_")
    for group in (*REQUIRED, *(group for group in tree if group not in REQUIRED)):
        validate_node(tree[group], group)
    _check_relations(tree)


def _no_node(key: str, given: Any, what: str) -> UserError:
    return UserError(f"`{key}` must be {what}; got {shown(given)}.{_options(key)}")


def validate_node(node: Any, where: str, given: Sequence[str] | None = None) -> None:
    """Check a resolved node, and all nodes in it, against the signatures of their targets.

    ``given`` names the arguments that come from elsewhere; None: they are not known, and none is missed.

    Raises:
        UserError: as ``validate``.
    """
    if isinstance(node, list):
        for place, entry in enumerate(node):
            validate_node(entry, f"{where}[{place}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        _check_arguments(node, where, given)
    for name, value in node.items():
        validate_node(value, _joined(where, str(name)))


def _check_arguments(node: dict[str, Any], where: str, given: Sequence[str] | None) -> None:
    target = locate(str(node["_target_"]), where)
    try:
        parameters, annotations, is_open = _arguments_of(target)
    except ValueError:  # a builtin that has no signature
        return
    check(_joined(where, "_partial_"), bool, node.get("_partial_", False))
    for name, value in node.items():
        if name in _HYDRA:
            continue
        if name in parameters:
            default = parameters[name].default
            default = None if default is inspect.Parameter.empty else default
            _check_value(_joined(where, name), annotations.get(name, Any), value, default)
        elif not is_open:
            near = nearest(name, list(parameters))
            raise UserError(
                " ".join(f"Invalid `{where}`: unknown argument `{name}`. {near}{_options(where, node)}".split())
            )
    for name, parameter in parameters.items() if given is not None else ():
        if parameter.default is parameter.empty and name not in node and name not in (given or ()):
            raise UserError(must_be_given(_joined(where, name)))


@functools.cache
def _arguments_of(target: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any], bool]:
    """A target's named arguments, their annotations, and whether it takes others.

    A factory's ``**settings`` are arguments of the class that it returns.
    """
    found, annotations = dict(inspect.signature(target).parameters), dict(annotations_of(target))
    kinds = inspect.Parameter
    named = {n: p for n, p in found.items() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    if not any(parameter.kind is kinds.VAR_KEYWORD for parameter in found.values()):
        return named, annotations, False
    made = get_type_hints(target).get("return") if inspect.isfunction(target) else None
    if not inspect.isclass(made) or not made.__module__.startswith("avrec."):
        return named, annotations, True
    returned: Any = made
    arguments, more, is_open = _arguments_of(returned)
    arguments = {name: parameter.replace(default=None) for name, parameter in arguments.items()}
    return arguments | named, more | annotations, is_open


def _check_value(key: str, annotation: Any, value: Any, default: Any = None) -> None:
    if value == "???":
        raise UserError(must_be_given(key))
    if value is None and key in _FROM_DATA:
        return
    if not any("_target_" in node for node in _mappings(value)):  # its value is not known yet
        check(key, annotation, value, default)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(part)


def locate(name: str, where: str) -> Any:
    """What a dotted name names.

    Raises:
        UserError: there is no such thing, or its package is not installed.
    """
    try:
        found = pkgutil.resolve_name(name)
        if not callable(found):
            raise ValueError("not a class or function")
    except (ImportError, AttributeError, ValueError) as error:
        extra = f"pip install 'avrec[{where.rpartition('.')[2]}]'" if where.startswith("logger.") else "make pretrained"
        raise UserError(
            f"`{where}._target_` must name something that can be imported; got {name} ({error}). Its package, where it "
            f"is not installed: {extra}."
        ) from error
    return found


def _check_relations(tree: dict[str, Any]) -> None:
    """Check what a single annotation cannot say."""
    for key in ("text", "audio", "fusion", "user_tower.attention"):
        node: Any = tree
        for part in key.split("."):
            node = (node or {}).get(part)
        if isinstance(node, dict) and {"heads"} <= node.keys() and str(node.get("_target_")).startswith("avrec."):
            of = f"{key}.width" if "width" in node else "dim"
            width = node.get("width", tree["dim"])
            if width % node["heads"]:
                raise UserError(f"`{key}.heads` must divide {of}={width}; got {node['heads']}.")
    shares = {f"split.{name}": share for name in ("val_share", "test_share") if (share := tree["split"].get(name))}
    if sum(shares.values()) >= 1:
        both = " and ".join(f"{key}={share}" for key, share in shares.items())
        raise UserError(f"The shares of validation and test must add up to less than 1; got {both}.")
    devices = tree["trainer"]["devices"]
    if isinstance(devices, list) and len(devices) > 1:
        raise UserError(f"`trainer.devices` must name one device; got {shown(devices)}.")
    measured = tree["evaluation"]["validate"]
    if tree["monitor"].removeprefix("val/") not in measured:
        raise UserError(
            f"`monitor` must be a metric of evaluation.validate={shown(measured)}; got {tree['monitor']}. "
            f"Use monitor=val/{measured[0]}, or add its metric to evaluation.validate."
        )


def must_be_given(key: str) -> str:
    """The message for a value that has no default."""
    return f"`{key}` must be given; got nothing. Add {key}=VALUE to the command."


def _options(where: str, node: Mapping[str, Any] | None = None) -> str:
    """Where a node's arguments are listed: the files of its group, the one of its target where there is one."""
    files = sorted((CONF / where.partition(".")[0]).glob("*.yaml")) if where else []
    target = str((node or {}).get("_target_", ""))
    same = [path for path in files if target and f"_target_: {target}\n" in path.read_text(encoding="utf-8")]
    names = ", ".join(f"conf/{path.parent.name}/{path.name}" for path in same or files)
    return f" Options: {names}." if names else ""


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
