"""Cut a network at the deepest point before which everything is frozen and deterministic.

What lies before that point, the prefix, gives the same numbers for the same image in every epoch and every trial, so
it has to run only once per image. For VGG16 with only its head trained this is everything up to the first ReLU of the
classifier: 15.5 of 15.52 GMAC.

Which operations are deterministic is found out by running them, not by a list of names: the network is traced with
torch.fx and executed node by node, twice, and a node counts as fixed only if it left the random state and its buffers
alone and gave the same image the same numbers both times, although its neighbour in the batch was another.
`structure` says for which networks of the same values that holds without being run again.
"""

import hashlib
import random
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from dogbreed.models.backbones import is_stochastic_depth, set_mode
from dogbreed.models.timm_networks import untraced

# While torch.fx traces, it has its own hands in nn.Module.__call__; two at once would leave them there.
_TRACING = threading.Lock()
_LIBRARIES = ("torch", "torchvision", "timm", "_operator", "builtins")  # whose versions are in the keys of stores
PROBE = 1  # changes with what the probe looks for
BATCH = 2  # images in the probe: one that is compared, beside another


class NoPrefix(Exception):
    """The network has no part that may be computed once; the message says why."""


class Tail(nn.Module):
    """What follows the prefix. Control flow is fixed when a graph is traced, so there is one for each mode.

    Both graphs call the network's own modules and share its parameters; nothing is copied.
    """

    def __init__(self, training_graph: fx.GraphModule, evaluation_graph: fx.GraphModule) -> None:
        super().__init__()
        # In a tuple, so that they are not registered: the network owns the parameters.
        self._graphs = (evaluation_graph, training_graph)

    def graph(self, training: bool) -> fx.GraphModule:
        """Return the graph of one mode."""
        return self._graphs[training]

    def forward(self, features: Tensor, training: bool) -> Tensor:
        """Return logits [N, classes] of features [N, ...] as the prefix gave them."""
        return self._graphs[training](features)


class CutNetwork(NamedTuple):
    """A network in two parts that share its parameters.

    Attributes:
        prefix: Images [N, 3, S, S] to features [N, *shape]; frozen and deterministic.
        tail: Features and the mode (training or not) to logits [N, classes].
        last_node: Name of the last node of the prefix, dots for levels as in the network's own names.
        shape: Of one image's features.
        total: Number of operations in the network, `before` of them in the prefix.
    """

    prefix: fx.GraphModule
    tail: Tail
    last_node: str
    shape: tuple[int, ...]
    before: int
    total: int


class Finding(NamedTuple):
    """What the probe finds of a traced network.

    Attributes:
        position: Of the prefix's last node in the graph.
        shape: Of one image's features.
        order: Of the dimensions of a batch of features in memory.
    """

    position: int
    shape: tuple[int, ...]
    order: tuple[int, ...]


class Traced(NamedTuple):
    """The graphs of a network in training and in evaluation."""

    training: fx.GraphModule
    evaluation: fx.GraphModule


def cut(network: nn.Module, size: int) -> CutNetwork:
    """Find the cut and build both parts.

    The network's mode, buffers and the global random state are left as they were.

    Args:
        network: Frozen as it will be trained (`backbones.freeze`).
        size: Side of the square input in pixels.

    Raises:
        NoPrefix: The network cannot be traced, or nothing before its first trainable or random operation can be
            passed on as one tensor.
    """
    traced = trace(network)
    return divide(traced, probe(network, traced, size))


def trace(network: nn.Module) -> Traced:
    """Trace a network in both modes; arguments and errors as for `cut`."""
    with _restored(network):
        set_mode(network, training=False)
        evaluation = _trace(network)
        set_mode(network, training=True)
        return Traced(_trace(network), evaluation)


def probe(network: nn.Module, traced: Traced, size: int) -> Finding:
    """Find the cut by running what was traced; arguments and errors as for `cut`."""
    with _restored(network):
        set_mode(network, training=True)
        fixed, seen = _probe(traced.training, size)
        last = _deepest_cut(traced.training, fixed, seen.shapes)
        set_mode(network, training=False)
        _check_evaluation(traced.evaluation, traced.training.graph, last, seen.first_rows[last], size)
    index = list(traced.training.graph.nodes).index(last)
    return Finding(index, tuple(seen.shapes[last][1:]), seen.orders[last])


def divide(traced: Traced, finding: Finding) -> CutNetwork:
    """Build both parts."""
    nodes = list(traced.training.graph.nodes)
    prefix, training_tail = _parts(traced.training, finding.position, finding.order)
    _, evaluation_tail = _parts(traced.evaluation, finding.position, finding.order)
    tail, last_node = Tail(training_tail, evaluation_tail), _name(nodes[finding.position])
    return CutNetwork(prefix, tail, last_node, finding.shape, finding.position, len(nodes) - 1)


def structure(traced: Traced, size: int) -> str | None:
    """Return a digest of all but the values that a finding depends on; None where more than values may change.

    That is where code of somebody's own is called, which may be another tomorrow, where hooks do what they like, and
    on a GPU, whose kernels are chosen anew in each process.
    """
    digest = hashlib.blake2b(f"{PROBE} {size}".encode(), digest_size=16)
    for graph_module in traced:
        if any(parameter.device.type != "cpu" for parameter in graph_module.parameters()):
            return None
        digest.update(graph_module.code.encode())
        for node in graph_module.graph.nodes:
            if not _is_of_a_library(graph_module, node):
                return None
            if node.op == "call_module":
                digest.update(_described(graph_module, node).encode())
        digest.update(repr([(name, p.requires_grad) for name, p in graph_module.named_parameters()]).encode())
    return digest.hexdigest()


def _is_of_a_library(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node does what its name says, and what its library's version did before."""
    if node.op == "call_function":
        homes = [getattr(node.target, "__module__", None) or "torch"]  # built-in functions of torch have none
    elif node.op == "call_module":
        modules = list(traced.get_submodule(str(node.target)).modules())
        if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
            return False
        homes = [type(module).__module__ for module in modules]
    else:
        return True
    return all(home.partition(".")[0] in _LIBRARIES for home in homes)


def fingerprint(prefix: fx.GraphModule) -> str:
    """Return a digest of what the prefix computes: its operations with their settings, and every value it uses."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _content(prefix):
        digest.update(part)
    return digest.hexdigest()


def checksum(prefix: fx.GraphModule) -> int:
    """Return the CRC-32 of what `fingerprint` digests: in a fifth of the time, whether the same prefix has changed."""
    number = 0
    for part in _content(prefix):
        number = zlib.crc32(part, number)
    return number


def _content(prefix: fx.GraphModule) -> Iterator[bytes | memoryview]:
    yield prefix.code.encode()
    for node in prefix.graph.nodes:
        if node.op == "call_module":
            yield _described(prefix, node).encode()
    for name, value in sorted([*prefix.named_parameters(), *prefix.named_buffers()]):
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _described(traced: fx.GraphModule, node: fx.Node) -> str:
    module = traced.get_submodule(str(node.target))
    # MultiheadAttention is one whose repr leaves settings out.
    return f"{node.target}: {module!r} {[_settings(part) for part in module.modules()]}"


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return plain attributes by name; the mode is none, since the prefix computes the same in both."""
    plain = (bool, int, float, str, tuple, NoneType)
    values = ((name, value) for name, value in vars(module).items() if isinstance(value, plain))
    return sorted((name, value) for name, value in values if not name.startswith("_") and name != "training")


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        self._untraced, functions = untraced()
        super().__init__(autowrap_functions=functions)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        # Traced through, stochastic depth would be frozen in the mode of the moment, and a norm would count batches.
        opaque = isinstance(module, (_NormBase, *self._untraced)) or is_stochastic_depth(module)
        return opaque or super().is_leaf_module(module, qualified_name)


def _trace(network: nn.Module) -> fx.GraphModule:
    """Return the network's graph. What Python code does beside it is lost, and must be nothing that matters."""
    buffers, state = _buffers(network), _random_state()
    one, two = _trace_once(network), _trace_once(network)
    quiet = _same_state(state, _random_state()) and _equal(buffers, _buffers(network))
    if not (quiet and one.code == two.code and _equal(_constants(one), _constants(two))):
        raise NoPrefix("it draws random numbers or changes a buffer while it is traced")
    return one


def _trace_once(network: nn.Module) -> fx.GraphModule:
    try:
        with _TRACING, _without_constants(network):
            return fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:  # fx raises whatever the traced code raises
        reason = str(error).strip().splitlines()
        raise NoPrefix(f"torch.fx cannot trace it ({reason[0] if reason else type(error).__name__})") from error


@contextmanager
def _without_constants(network: nn.Module) -> Iterator[None]:
    """Take tensors off the network that a trace leaves there: the next one would give other numbers to its own."""
    before = set(vars(network))
    try:
        yield
    finally:
        for name in set(vars(network)) - before:
            if name.startswith("_tensor_constant"):
                delattr(network, name)


def _constants(traced: fx.GraphModule) -> dict[str, Tensor]:
    """Return tensors that the code made while it was traced."""
    return {name: value for name, value in vars(traced).items() if isinstance(value, Tensor)} | _buffers(traced)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class _Recorder(fx.Interpreter):
    """Run a graph node by node and note which nodes drew random numbers or changed a buffer."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.first_rows: dict[fx.Node, Tensor] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.orders: dict[fx.Node, tuple[int, ...]] = {}
        self.touched: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        buffers = self._buffers(n)
        state = _random_state()
        result = super().run_node(n)
        if not _same_state(state, _random_state()):
            self.touched.add(n)
        if any(not torch.equal(before, after) for before, after in zip(buffers, self._buffers(n), strict=True)):
            self.touched.add(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
            self.orders[n] = tuple(sorted(range(result.dim()), key=result.stride().__getitem__, reverse=True))
            # Cloned: an operation in place further on would overwrite it.
            self.first_rows[n] = result[:1].detach().clone() if result.dim() else result.detach().clone()
        return result

    def _buffers(self, node: fx.Node) -> list[Tensor]:
        if node.op != "call_module":
            return []
        return [buffer.clone() for buffer in self.module.get_submodule(str(node.target)).buffers()]


def _record(traced: fx.GraphModule, size: int, neighbour: int) -> _Recorder:
    """Run the graph on a fixed image beside another one."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, size, size, generator=generator) for _ in range(3)]
    parameter = next(traced.parameters(), images[0])
    batch = torch.stack([images[0], images[neighbour]]).to(parameter.device, parameter.dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)  # as the data gives them
    recorder = _Recorder(traced)
    try:
        with torch.no_grad():
            recorder.run(batch)
    except torch.OutOfMemoryError:
        raise  # of the device, not of the network
    except (RuntimeError, AssertionError, ValueError) as error:
        raise NoPrefix(f"it does not run on inputs of {size} x {size} pixels ({str(error).splitlines()[0]})") from error
    return recorder


def _probe(traced: fx.GraphModule, size: int) -> tuple[set[fx.Node], _Recorder]:
    """Return the nodes that are frozen and deterministic, and a record of every node in a batch of two."""
    one, two = _record(traced, size, neighbour=1), _record(traced, size, neighbour=2)
    fixed = set()
    for node in traced.graph.nodes:
        if node.op == "output" or node in one.touched | two.touched or _has_trainable(traced, node):
            continue
        # What has no row per image cannot be compared so; if it mixes images, that shows in whatever is made of it.
        if one.shapes.get(node, (None,))[:1] == (BATCH,) and not torch.equal(
            one.first_rows[node], two.first_rows[node]
        ):
            continue
        fixed.add(node)
    return fixed, one


def _has_trainable(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(parameter.requires_grad for parameter in _parameters(traced, node))
    if node.op == "get_attr":
        value: Any = traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return isinstance(value, Tensor) and value.requires_grad
    return False


def _parameters(traced: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    return list(traced.get_submodule(str(node.target)).parameters())


def _check_evaluation(
    evaluation: fx.GraphModule, training: fx.Graph, cut: fx.Node, expected: Tensor, size: int
) -> None:
    """Check that the frozen part gives in evaluation what it gives in training: then one run of it serves both."""
    index = list(training.nodes).index(cut)
    ours, twins = list(training.nodes)[: index + 1], list(evaluation.graph.nodes)[: index + 1]
    if [_describe(node) for node in ours] == [_describe(node) for node in twins]:
        return
    alike = [(node.op, node.target) for node in ours] == [(node.op, node.target) for node in twins]
    rows = _record(evaluation, size, neighbour=1).first_rows if alike else {}
    if not alike or not torch.equal(rows[twins[index]], expected):
        raise NoPrefix("its frozen part computes something else in training than in evaluation")


def _deepest_cut(traced: fx.GraphModule, fixed: set[fx.Node], shapes: dict[fx.Node, torch.Size]) -> fx.Node:
    """Return the last node up to which all is fixed and behind which one tensor, a row per image, is used again."""
    nodes = list(traced.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    best = None
    weighty = False
    open_values: set[fx.Node] = set()
    obstacle = None
    for index, node in enumerate(nodes):
        # A parameter or buffer may be read on whichever side uses it, so a trainable one ends nothing by itself.
        if node.op == "get_attr":
            if node not in fixed:
                fixed -= set(node.users)
            continue
        if node not in fixed:
            obstacle = node
            break
        open_values.add(node)
        open_values = {value for value in open_values if any(position[user] > index for user in value.users)}
        # Without a parameter behind it nothing worth keeping has been computed.
        weighty = weighty or (node.op == "call_module" and bool(_parameters(traced, node)))
        crosses = open_values == {node} and weighty
        if crosses and node in shapes and len(shapes[node]) > 1 and shapes[node][0] == BATCH:
            best = node
    if best is None:
        if all(parameter.requires_grad for parameter in traced.parameters()):
            raise NoPrefix("every layer trains, so nothing can be computed once")
        where = f" before {_name(obstacle)}, which trains or is random," if obstacle is not None else " in it"
        raise NoPrefix(f"nothing{where} is frozen, deterministic and passes on a single tensor")
    return best


def to_memory_order(features: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the same numbers with their dimensions in that order in memory, along which dropout draws its mask."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return features.permute(order).contiguous().permute(back)


def _parts(traced: fx.GraphModule, index: int, order: tuple[int, ...]) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return two graphs over the network's own modules: up to and including node `index`, and the rest.

    The second lays the features out in memory as the network itself would have passed them on.
    """
    nodes = list(traced.graph.nodes)
    first, second = nodes[: index + 1], nodes[index + 1 :]
    attributes = [node for node in first if node.op == "get_attr"]

    prefix_graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in first:
        copies[node] = prefix_graph.node_copy(node, copies.__getitem__)
    prefix_graph.output(copies[nodes[index]])
    _drop_unused_reads(prefix_graph)

    tail_graph = fx.Graph()
    features = tail_graph.placeholder("features")
    copies = {nodes[index]: tail_graph.call_function(to_memory_order, (features, order))}
    for node in attributes:
        copies[node] = tail_graph.node_copy(node, copies.__getitem__)
    for node in second:
        copies[node] = tail_graph.node_copy(node, copies.__getitem__)
    _drop_unused_reads(tail_graph)
    return fx.GraphModule(traced, prefix_graph), fx.GraphModule(traced, tail_graph)


def _drop_unused_reads(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _describe(node: fx.Node) -> tuple[str, str, str]:
    return node.op, str(node.target), f"{node.args}{node.kwargs}"


def _name(node: fx.Node | None) -> str:
    if node is None:
        return ""
    return str(node.target) if node.op == "call_module" else node.name


def _random_state() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # a question would begin one
    if torch.backends.mps.is_available():
        devices = [torch.mps.get_rng_state()]
    return (torch.get_rng_state(), *devices), random.getstate(), np.random.get_state()


def _same_state(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    tensors = all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    numpys = all(np.array_equal(a, b) for a, b in zip(one[2], two[2], strict=True))
    return tensors and one[1] == two[1] and numpys


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random states back: the probe runs whatever the network does."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = _buffers(network)
    (cpu, *devices), python, numpy = _random_state()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
        torch.set_rng_state(cpu)
        if torch.backends.mps.is_available():
            torch.mps.set_rng_state(*devices)
        elif devices:
            torch.cuda.set_rng_state_all(devices)
        random.setstate(python)
        np.random.set_state(numpy)
