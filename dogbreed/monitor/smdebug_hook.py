"""smdebug's hook as a callback: saves losses, gradients and whatever else is asked for while a run trains.

What is saved comes from the JSON file that SageMaker leaves in a job, or from the `debugger` group of the
configuration, which is turned into such a file: one way in for both. Without either, smdebug is not even imported.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datasets import FeatureBatch
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.monitor.smdebug_reader import END_OF_JOB, smdebug


def hook_enabled(settings: Mapping[str, Any]) -> bool:
    """Return whether a `debugger` group asks for the hook.

    Raises:
        DogbreedError: `enabled` is none of its values.
    """
    enabled = settings["enabled"]
    if enabled not in (True, False, "auto"):
        raise DogbreedError(f"debugger.enabled={enabled} is unknown; it is one of true, false, auto.")
    return Path(settings["config_file"]).is_file() if enabled == "auto" else enabled


def hook_config(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a `debugger` group in the form of SageMaker's debughookconfig.json.

    Args:
        settings: The group.
        folder: Where tensors go.

    Raises:
        DogbreedError: A collection is no mapping.
    """
    general = {mode: settings[mode] for mode in ("train", "eval")}
    collections = []
    for name, own in (settings["collections"] or {}).items():
        if not isinstance(own, Mapping | None):
            raise DogbreedError(f"debugger.collections.{name} must be a mapping, such as {{save_interval: 10}}.")
        parameters = {"reductions": settings["reductions"], **(own or {})}
        if parameters["reductions"] is None:  # smdebug then saves whole tensors
            del parameters["reductions"]
        collections.append({"CollectionName": name, "CollectionParameters": _flat(parameters)})
    return {
        "S3OutputPath": "",
        "LocalPath": str(folder),
        "HookParameters": _flat(general),
        "CollectionConfigurations": collections,
    }


def _flat(parameters: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return parameters as SageMaker sends them: dotted names, and strings as values."""
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


class TensorHook(Callback):
    """Register network and losses with smdebug for the time of the training, and take them out again.

    The network's own forward pass starts a step of smdebug. Where features were computed beforehand only the network's
    tail runs, so the step is started here; tensors of the prefix are not there to be saved then.

    Args:
        settings: The `debugger` group.
        run_folder: Of the run.
        quiet: Say nothing.

    Attributes:
        folder: Where tensors go.

    Raises:
        DogbreedError: smdebug is missing, its configuration is wrong, or the folder has been written before.
    """

    def __init__(self, settings: Mapping[str, Any], run_folder: Path, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._library = smdebug("smdebug.pytorch")
        file = Path(settings["config_file"])
        if file.is_file():
            self.config = _read_config(file)
        else:
            folder = Path(settings["dir"]) if settings["dir"] else _free(run_folder / "tensors")
            self.config = hook_config(settings, folder)
        self.folder = Path(self.config["LocalPath"])
        if (self.folder / END_OF_JOB).exists() or (settings["dir"] and not file.is_file() and _used(self.folder)):
            raise DogbreedError(f"{self.folder} holds tensors of another run; give a new folder as debugger.dir.")
        self._check_config()
        self._hook: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: the name of the worker is that of the process in its group.
        assert isinstance(pl_module, DogBreedClassifier)
        self._hook = self._create()
        self._hook.register_module(pl_module.network)
        for criterion in (pl_module.criterion, pl_module.eval_criterion):
            self._hook.register_loss(criterion)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        modes = self._library.modes
        steps = trainer.current_epoch * int(trainer.num_training_batches)
        if steps and self._hook.step < 0:  # resumed: the steps go on where they were
            evaluations = trainer.current_epoch * sum(int(number) for number in trainer.num_val_batches)
            for mode, done in ((modes.TRAIN, steps), (modes.EVAL, evaluations), (modes.GLOBAL, steps + evaluations)):
                self._hook.mode_steps[mode] = done - 1
            self._hook.step = steps + evaluations - 1
        self._hook.set_mode(modes.TRAIN)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._hook is not None:
            self._hook.set_mode(self._library.modes.EVAL)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._hook is not None:
            self._hook.set_mode(self._library.modes.TRAIN)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start_step(pl_module, batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_step(pl_module, batch)

    def _start_step(self, module: LightningModule, batch: Any) -> None:
        if self._hook is not None and isinstance(batch, FeatureBatch):
            assert isinstance(module, DogBreedClassifier)
            self._hook.forward_pre_hook(module.network, ())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self.quiet:
            print(
                f"Tensors: {self.folder}; python -m dogbreed.debug {shlex.quote(str(self.folder))} shows them",
                flush=True,
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._hook is not None:
            hook, self._hook = self._hook, None
            hook.close()
            _take_out(hook)

    def _create(self) -> Any:
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "debughookconfig.json"
            file.write_text(json.dumps(self.config), encoding="utf-8")
            return _hook_class(self._library).create_from_json_file(str(file))

    def _check_config(self) -> None:
        """Let smdebug parse its settings before anything has been written."""
        parse = smdebug("smdebug.core.json_config")
        manager = smdebug("smdebug.pytorch.collection").CollectionManager()
        try:
            general = parse.collect_hook_config_params(self.config)
            parse.get_include_collections(self.config)
            parse.add_collections_to_manager(manager, self.config, general)
        except Exception as error:  # SMDebugError, ValueError, TypeError, AttributeError ...
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DogbreedError(f"smdebug refuses the debugger's settings: {reason}.") from error


def _hook_class(library: ModuleType) -> Any:
    class Hook(library.Hook):  # type: ignore[name-defined]
        @staticmethod
        def _make_numpy_array(tensor_value: Any) -> Any:
            if isinstance(tensor_value, torch.Tensor) and tensor_value.dtype == torch.bfloat16:
                tensor_value = tensor_value.float()  # numpy has no bfloat16
            return library.Hook._make_numpy_array(tensor_value)

    return Hook


def _take_out(hook: Any) -> None:
    """Undo what smdebug's `register_module` and `register_loss` did; it keeps no handles that could do it."""
    for module in hook.module_set:
        for kept in (module._forward_hooks, module._forward_pre_hooks):
            for number in [number for number, function in kept.items() if getattr(function, "__self__", None) is hook]:
                del kept[number]
        for parameter in module.parameters(recurse=False):
            _take_out_of(parameter)
        vars(module).pop("_module_name", None)


def _take_out_of(parameter: nn.Parameter) -> None:
    kept = parameter._backward_hooks or {}
    for number in [n for n, function in kept.items() if function.__module__.startswith("smdebug.")]:
        del kept[number]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DogbreedError(f"{file} cannot be read as the debugger's JSON; debugger.enabled=false goes on without."
                            ) from error  # fmt: skip
    if not isinstance(config, dict):
        raise DogbreedError(f"{file} is no JSON object as the debugger writes it.")
    return {**config, "LocalPath": config.get("LocalPath") or "/opt/ml/output/tensors"}


def _used(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _free(folder: Path) -> Path:
    """Return the folder, or where it has been used (by the run that is resumed, say) the next like it."""
    free, number = folder, 1
    while _used(free):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
