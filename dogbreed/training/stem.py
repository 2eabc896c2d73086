"""What comes before the last layer: frozen, but with dropout; steps that pass it at once keep their own masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dogbreed.models import backbones
from dogbreed.models.classifier import DogBreedClassifier, seed_generators
from dogbreed.models.cut import to_memory_order

# What gives an image the same result whichever images are beside it; dropout is drawn step by step.
ROW_WISE = (nn.Linear, nn.Dropout, nn.Flatten, nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh)


class NotStackable(Exception):
    """The model's last layer cannot be trained apart from what comes before it; the message says why."""


class Stem:
    """What lies between the features and the last layer: frozen, but with dropout, so it runs once per batch.

    Args:
        model: Uses features (`DogBreedClassifier.use_features`), with only its head trainable.

    Raises:
        NotStackable: The last layer is not a linear one that alone trains and alone gives the logits.
    """

    def __init__(self, model: DogBreedClassifier) -> None:
        if model.parts is None:
            raise NotStackable("the features of its frozen part are not there")
        name = backbones.head_name(model.network)
        head = model.network.get_submodule(name)
        if not isinstance(head, nn.Linear):
            raise NotStackable(f"its last layer, {name}, is not a linear one")
        trained = {id(parameter) for parameter in model.network.parameters() if parameter.requires_grad}
        if trained != {id(parameter) for parameter in head.parameters()}:
            raise NotStackable(f"more of it trains than its last layer, {name}")
        self.head = head
        self.model = model
        self._graphs = {mode: _without_head(model.parts.tail.graph(mode), name) for mode in (True, False)}
        self.row_wise = _is_row_wise(self._graphs[True])

    def __call__(self, features: Tensor) -> Tensor:
        """Return the last layer's input [N, inputs] in evaluation, from features [N, ...]."""
        with torch.no_grad():
            result: Tensor = self._graphs[False](features)
        return result

    def steps(self, features: Tensor, sizes: list[int], seeds: Sequence[int]) -> Tensor:
        """Return the last layer's input [N, inputs] of several training steps, which follow each other.

        Args:
            features: Of all steps, [N, ...].
            sizes: Images of each step.
            seeds: Of each step.
        """
        graph = self._graphs[True]
        with torch.no_grad():
            if self.row_wise:
                joined: Tensor = _Joined(graph, sizes, seeds).run(features)
                return joined
            results = []
            for own, seed in zip(features.split(sizes), seeds, strict=True):
                seed_generators(seed, own.device)
                results.append(graph(own))
            return torch.cat(results)


def _without_head(tail: fx.GraphModule, name: str) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(tail.graph, copies)
    if not isinstance(output, fx.Node) or output.op != "call_module" or output.target != name:
        raise NotStackable(f"something follows its last layer, {name}")
    (features,) = output.args
    assert isinstance(features, fx.Node)
    graph.output(features)
    graph.erase_node(output)
    return fx.GraphModule(tail, graph)


def _is_row_wise(graph: fx.GraphModule) -> bool:
    """Return whether an image comes to the same, but for its dropout, whichever images are beside it."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            if not isinstance(graph.get_submodule(str(node.target)), ROW_WISE):
                return False
        elif node.op == "call_function":
            if node.target is not to_memory_order or node.args[1][0] != 0:  # images one after the other in memory
                return False
        elif node.op not in ("placeholder", "output"):
            return False
    return True


class _Joined(fx.Interpreter):
    """Run the images of several steps at once; each step draws the dropout masks that it would have drawn alone."""

    def __init__(self, graph: fx.GraphModule, sizes: list[int], seeds: Sequence[int]) -> None:
        super().__init__(graph)
        self.sizes = sizes
        self.seeds = seeds
        self._states: dict[tuple[int, int], Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, nn.Dropout):
            return super().call_module(target, args, kwargs)
        (inputs,) = args
        random = torch.cuda if inputs.is_cuda else torch
        outputs, masks, one = torch.empty_like(inputs), {}, inputs.new_ones(())
        for seed, part, result in zip(self.seeds, inputs.split(self.sizes), outputs.split(self.sizes), strict=True):
            step = seed, len(part)
            if step not in masks:  # heads of one seed draw the same, whatever their images are
                if step in self._states:
                    random.set_rng_state(self._states[step])
                else:
                    seed_generators(seed, inputs.device)
                masks[step] = nn.functional.dropout(one.expand_as(part), module.p, module.training)
                self._states[step] = random.get_rng_state()
            torch.mul(part, masks[step], out=result)
        return outputs
