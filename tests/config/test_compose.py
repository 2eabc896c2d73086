import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import dogbreed
from dogbreed.config import reproduce
from dogbreed.config.compose import (
    ConfigError,
    check,
    compose,
    conf_dir,
    diff,
    fitting_batch_size,
    flatten,
    known_keys,
    prepare,
    to_yaml,
)
from dogbreed.config.overrides import SHORT, to_overrides
from dogbreed.config.search_space import ranges
from dogbreed.config.settings import Config, path_keys
from dogbreed.core.errors import DogbreedError

# What the run sets itself.
OWNED = {
    "self",
    "logger",
    "callbacks",
    "default_root_dir",
    "enable_progress_bar",
    "enable_checkpointing",
    "use_distributed_sampler",
    "plugins",
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("SM_CHANNEL_TRAINING", "DOGBREED_CACHE"):
        monkeypatch.delenv(name, raising=False)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
    return str(refused.value)


NEWER = ("labels", "split", "class_mismatch")


def test_the_defaults_are_the_agreed_ones():
    flat = flatten(compose())
    agreed = {
        "data.root": "data/dogImages",
        "data.batch_size": 512,
        "data.num_workers": "auto",
        "data.augment": "flip",
        "data.resize": "squash",
        "data.on_bad_image": "skip",
        "data.max_pixels": 100_000_000,
        "data.labels": None,
        "data.split": [0.8, 0.1, 0.1],
        "data.class_mismatch": "error",
        "model.backbone": "vgg16",
        "model.weights": "imagenet",
        "model.trainable": "head",
        "model.lr": 0.0033047276512977604,
        "model.weight_decay": 0,
        "model.label_smoothing": 0,
        "model.optimizer": "adam",
        "model.schedule": "constant",
        "trainer.max_epochs": 5,
        "cache.mode": "auto",
        "cache.dir": None,
        "cache.precision": "float32",
        "search.trials": 20,
        "search.objective": "val_loss",
        "seed": 0,
        "output_dir": None,
    }
    assert {key: flat[key] for key in agreed} == agreed
    assert "hydra" not in compose()


def test_container_paths_enter_through_the_environment(monkeypatch):
    monkeypatch.setenv("SM_CHANNEL_TRAINING", "/opt/ml/input/data/training")
    monkeypatch.setenv("DOGBREED_CACHE", "/fast")
    config = compose()
    assert config["data"]["root"] == "/opt/ml/input/data/training"
    assert config["cache"]["dir"] == "/fast"
    assert compose(["data=sample"])["data"]["root"] == "/opt/ml/input/data/training"


def test_trainer_keys_are_lightnings_arguments_without_our_own():
    import lightning

    signature = inspect.signature(lightning.Trainer.__init__).parameters
    ours = compose()["trainer"]
    assert set(ours) == set(signature) - OWNED
    chosen = {"max_epochs", "num_sanity_val_steps", "log_every_n_steps"}
    assert {name: value for name, value in ours.items() if name not in chosen} == {
        name: signature[name].default for name in ours if name not in chosen
    }


@pytest.mark.parametrize(
    ("trainer", "cache", "precision"),
    [
        ("bf16-mixed", None, "bfloat16"),
        ("16-mixed", None, "float16"),
        ("64-true", None, "float32"),
        ("32", None, "float32"),
        ("bf16-mixed", "float32", "float32"),
    ],
)
@pytest.mark.slow
def test_features_have_the_trainers_precision(trainer, cache, precision):
    """Mixed precision would compute the frozen part so without the cache, too."""
    given = [f"cache.precision={cache}"] if cache else []
    config = compose([f"trainer.precision={trainer}", *given])
    assert config["cache"]["precision"] == precision
    assert (
        Config.from_dict({**compose(), "cache": {**compose()["cache"], "precision": None}}).cache.precision == "float32"
    )


def test_trainer_arguments_need_no_plus():
    overrides = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.precision=bf16-mixed"]
    trainer = compose([*overrides, "trainer.limit_train_batches=3", "trainer.max_time={hours: 1}"])["trainer"]
    assert (trainer["devices"], trainer["strategy"], trainer["precision"]) == (2, "ddp", "bf16-mixed")
    assert (trainer["limit_train_batches"], trainer["max_time"]) == (3, {"hours": 1})
    assert compose(["trainer.devices=[0,1]", "trainer.fast_dev_run=2"])["trainer"]["devices"] == [0, 1]
    assert compose(["trainer.max_epochs=null"])["trainer"]["max_epochs"] is None


@pytest.mark.parametrize(
    "path", sorted(conf_dir().glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}"
)
@pytest.mark.slow
def test_every_file_of_conf_composes_to_known_keys(path):
    config = compose([f"{path.parent.name}={path.stem}"])
    known = set(known_keys()) | set(flatten(compose()))
    assert {key for key in flatten(config) if not key.startswith("loggers.")} <= known


@pytest.mark.slow
def test_an_experiment_is_a_diff_and_the_command_line_wins():
    changed = ["data.augment", "data.batch_size", "data.root", "data.source", "model.backbone", "trainer.max_epochs"]
    assert diff(compose(), compose(["experiment=quickstart"])) == changed
    config = compose(["data=dogimages", "experiment=quickstart", "model.backbone=vgg16", "data.batch_size=8"])
    assert diff(compose(), config) == ["data.augment", "data.batch_size", "trainer.max_epochs"]
    assert diff(compose(), compose(["experiment=published"])) == []


def test_short_names_stand_for_keys_that_exist():
    assert set(SHORT.values()) <= set(known_keys())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.batchsize=3", "Unknown key data.batchsize; did you mean data.batch_size?"),
        ("+data.batchsize=3", "Unknown key data.batchsize; did you mean data.batch_size?"),
        ("batch_size=3", "Unknown key batch_size; did you mean data.batch_size?"),
        ("epochs=3", "Unknown key epochs; did you mean trainer.max_epochs?"),
        ("learning_rate=3", "Unknown key learning_rate; did you mean model.lr?"),
        ("modle.backbone=vgg19", "Unknown key modle.backbone; did you mean model.backbone?"),
        ("data.root.train=x", "Unknown key data.root.train; did you mean data.root?"),
        ("~data.rooot", "Unknown key data.rooot; did you mean data.root?"),
        (
            "output_dir=s3://bucket/run",
            "output_dir=s3://bucket/run is no path of this machine; copy what is there to one, or from one",
        ),
        (
            "model.weights=https://a.b/c.pth",
            "model.weights=https://a.b/c.pth is no path of this machine; copy what is there to one, or from one",
        ),
        ("debugger.dirr=x", "Unknown key debugger.dirr; did you mean debugger.dir?"),
        ("cache.dirr=x", "Unknown key cache.dirr; did you mean cache.dir?"),
        ("trainer.stepz=3", "Unknown key trainer.stepz; --cfg job shows all keys"),
        ("zzz=3", "Unknown key zzz; --cfg job shows all keys"),
        ("model.dropout=2", "Unknown key model.dropout; --cfg job shows all keys"),
        ("dropout=0.5", "Unknown key dropout; --cfg job shows all keys"),
        ("augmentation=crop", "Unknown key augmentation; did you mean data.augment?"),
        ("data.lr=0.1", "Unknown key data.lr; did you mean model.lr?"),
        (
            "experiment=quickstrat",
            "There is no experiment called quickstrat, only finetune, leaderboard, modern, published and quickstart; "
            "did you mean experiment=quickstart?",
        ),
        (
            "experiment=x",
            "There is no experiment called x, only finetune, leaderboard, modern, published and quickstart",
        ),
        ("model=resnet50", "There is no model called resnet50, only default; did you mean model.backbone=resnet50?"),
        ("data=my/dogs", "There is no data called my/dogs, only dogimages and sample; did you mean data.root=my/dogs?"),
        ("+data=sample", "data is given twice; write data=NAME, without a plus"),
        ("trainer=3", "A group takes the name of one of its files; set a key of it with group.key=value"),
        ("quickstart", "quickstart is not an override; did you mean experiment=quickstart?"),
        ("hello", "hello is not an override; write key=value, as in data.batch_size=64, or --batch-size 64"),
        ("=3", "=3 is not an override; write key=value, as in data.batch_size=64, or --batch-size 64"),
        (
            "model.backbone=it's",
            "The value of model.backbone cannot be read: it's; for this very text write '--model__backbone=it'\"'\"'s'",
        ),
        (
            "data.batch_size=32,64",
            "data.batch_size is given several values, 32,64; add --multirun to run once with each, "
            "or write data.batch_size=[32,64] for a list",
        ),
        ("data.root=${oc.env:NO_SUCH}", "data.root refers to the environment variable NO_SUCH, which is not set"),
        ("data.root=${no_such}", "data.root: Interpolation key 'no_such' not found"),
        ("data.batch_size=many", "data.batch_size must be a whole number, not 'many'"),
        ("data.batch_size=64.5", "data.batch_size must be a whole number, not 64.5"),
        ("data.batch_size=true", "data.batch_size must be a whole number, not True"),
        ("data.batch_size=null", "data.batch_size must be a whole number, not null"),
        ("model.lr=fast", "model.lr must be a number, not 'fast'"),
        ("model.lr={a: 1}", "model.lr must be a number, not {'a': 1}"),
        ("data.download=1", "data.download must be true or false, not 1"),
        ("data.root=null", "data.root must be a word or a path, not null"),
        ("loggers=csv", "loggers must be a mapping, such as {name: {}}, not 'csv'"),
        (
            "++sagemaker.debugger=1",
            "sagemaker.debugger has keys of its own, such as sagemaker.debugger.enabled; set one of those",
        ),
        ("~data.batch_size", "data.batch_size is missing; a key of the configuration can be changed, but not removed"),
    ],
)
@pytest.mark.slow
def test_refusals_name_the_cause_and_the_way_out(override, sentence):
    assert refusal(override) == sentence


PATHS = (
    *(
        "it's",
        "a,b",
        "lr=0.1",
        "dogs (1)",
        "犬",
        "my dogs=2,v(1)",
        "[a]",
        "{a: b}",
        "a:b",
        "#1",
        "50%",
        "a&b;c",
        "$HOME",
    ),
    *(
        "2024",
        "2024.10",
        "007",
        "1_000",
        "1e3",
        "0x10",
        "inf",
        "nan",
        "true",
        "none",
        "'half",
        'say "hi"',
        "a\\",
        " a ",
    ),
    *("\\'", "'a' and 'b'", "glob(*)", "choice(a,b)", "range(1,3)", "*", "!x", "a\tb", "~~", "null ", "@x", "a\nb"),
)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_a_path(path):
    """As it is typed, by each of the two spellings, whatever Hydra would make of it."""
    for words in ([f"resume={path}"], to_overrides([f"--resume={path}"])):
        [prepared] = prepare(words)
        assert prepare([prepared]) == [prepared]
        assert OverridesParser.create().parse_override(prepared).value() == path


@pytest.mark.parametrize("path", ["it's my dogs=2,v(1) & co; $HOME", "2024.10", "犬\\", "'quoted'"])
@pytest.mark.slow
def test_the_line_that_repeats_a_run_can_be_copied(path):
    """Through a shell, which gives the words back as they were."""
    config = compose()
    line = reproduce.command({**config, "data": {**config["data"], "root": path}, "resume": path})
    shell = subprocess.run(
        ["sh", "-c", line.replace("python -m", "printf '%s|\\n'", 1)], capture_output=True, check=True
    )
    name, *words = shell.stdout.decode().split("|\n")[:-1]
    assert name == "dogbreed.train"
    assert compose(words)["data"]["root"] == path


def test_an_address_of_a_file_is_a_path():
    assert compose(["data.root=file:///my%20dogs"])["data"]["root"] == "/my dogs"


def test_every_key_that_takes_a_path_takes_any():
    keys = [f"++{key}" if key.startswith("sagemaker") else key for key in sorted(path_keys())]
    given = flatten(compose([f"{key}=~/my dogs=2,v(1)" for key in keys]))
    assert {given[key.lstrip("+")] for key in keys} == {os.path.expanduser("~/my dogs=2,v(1)")}


def test_whole_numbers_do_for_numbers():
    assert compose(["model.weight_decay=1", "cache.max_gb=2"])["cache"]["max_gb"] == 2


@pytest.mark.slow
def test_open_mappings_take_new_keys_and_are_replaced_as_a_whole():
    assert compose(["loggers.csv.name=a b"])["loggers"] == {"tensorboard": {}, "csv": {"name": "a b"}}
    assert compose(["loggers={csv: {}}"])["loggers"] == {"csv": {}}
    assert compose(["loggers=null"])["loggers"] is None
    assert compose(["search.space={model: {lr: {low: 1, high: 2}}}"])["search"]["space"] == {
        "model": {"lr": {"low": 1, "high": 2}}
    }
    space = compose(["~search.space.data", "search.space.model.lr.high=0.2"])["search"]["space"]
    assert space == {"model": {"lr": {"low": 0.001, "high": 0.2, "log": True}}}


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], 4),
        (["data.batch_size=64"], 4),
        (["data.batch_size=512"], 0),
        (["data.batch_size=512", "data.min_steps=2"], 2),
    ],
)
@pytest.mark.slow
def test_a_default_batch_that_is_asked_for_does_not_adapt(words, steps):
    assert compose(words)["data"]["min_steps"] == steps
    assert prepare(prepare(words)) == prepare(words)


@pytest.mark.parametrize(
    ("words", "images", "size"),
    [
        ([], 2048, 512),  # 4 steps
        ([], 2047, 256),
        ([], 24, 4),
        ([], 1, 2),
        (["data.min_steps=10"], 2560, 256),
        (["data.batch_size=512"], 24, 512),
        (["data.batch_size=64"], 24, 64),
    ],
)
def test_the_default_batch_leaves_an_epoch_enough_steps(words, images, size):
    assert fitting_batch_size(compose(words)["data"], images) == size


def test_preparing_twice_changes_nothing_more():
    once = prepare(["loggers={csv: {}}", "search.space.model.lr.low=0.1", "~data.url", "seed=1"])
    assert prepare(once) == once


def test_check_accepts_what_compose_made_and_refuses_the_rest():
    config = compose(["experiment=finetune"])
    check(config)
    with pytest.raises(ConfigError, match=r"Unknown key seedd; did you mean seed\?"):
        check({**config, "seedd": 1})


def test_ranges_as_published():
    assert ranges(compose()["search"]["space"]) == {
        "model.lr": {"low": 0.001, "high": 0.1, "log": True},
        "data.batch_size": {"choices": [32, 64, 128, 256, 512]},
    }


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (None, "search.space is empty"),
        (
            {"model": {"lrr": {"low": 1, "high": 2}}},
            r"Unknown key search\.space\.model\.lrr; did you mean search\.space\.model\.lr\?",
        ),
        ({"model": {"lr": 3}}, "search.space.model.lr must be a range, low and high or choices, not 3"),
        ({"model": {"lr": {"low": 1}}}, "must have low and high"),
        ({"model": {"lr": {"low": 2, "high": 1}}}, "low must be less than high"),
        ({"model": {"lr": {"low": 0, "high": 1, "log": True}}}, "must start above 0"),
        ({"model": {"lr": {"low": "a", "high": 1}}}, "must range between two numbers, not 'a'"),
        ({"model": {"lr": {"choices": [1], "low": 1}}}, "has both choices and low, high or log"),
        ({"data": {"batch_size": {"choices": 32}}}, r"choices must be a list of values"),
        ({"data": {"batch_size": {"choices": []}}}, r"choices must be a list of values"),
    ],
)
def test_impossible_ranges_are_refused(space, says):
    with pytest.raises(ConfigError, match=says):
        ranges(space)


def test_flatten_and_diff():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
    assert diff({"a": {"b": 1}, "c": None}, {"a": {"b": 2}, "d": None}) == ["a.b", "c", "d"]
    assert diff({"a": {"b": [1]}}, {"a": {"b": [1]}}) == []


def test_yaml_reads_back_to_the_same_values():
    config = compose(["data.root='a: b # c'", "model.lr=1e-5", "data.url='1e-5'", "output_dir='null'", "resume='[x'"])
    assert config["data"]["url"] == "1e-5"
    assert OmegaConf.to_container(OmegaConf.create(to_yaml(config))) == config


@pytest.mark.slow
def test_composing_leaves_hydras_state_as_it_was():
    GlobalHydra.instance().clear()
    compose()
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        compose(["seed=3"])
        refusal("nonsense=1")
        assert GlobalHydra.instance().hydra is running
        assert hydra_compose("config", ["seed=4"]).seed == 4


@pytest.mark.slow
def test_a_broken_file_of_the_users_is_named(tmp_path):
    package = shutil.copytree(Path(dogbreed.__file__).parent, tmp_path / "dogbreed")
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text("a: [1\nb: 2\n")
    code = "from dogbreed.config.compose import compose\n"
    code += "try: compose(['experiment=mine'])\nexcept Exception as e: print(repr(e))"
    done = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True)
    assert "not valid YAML" in done.stdout
    assert "mine.yaml" in done.stdout


@pytest.mark.slow
def test_conf_is_found_in_the_package_and_beside_it_and_missed_clearly(tmp_path):
    shutil.copytree(Path(dogbreed.__file__).parent, tmp_path / "dogbreed")
    code = "from dogbreed.config.compose import conf_dir; print(conf_dir())"

    def ask() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": ""}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    missing = ask()
    assert missing.returncode != 0
    assert "is neither in" in missing.stderr
    shutil.copytree(conf_dir(), tmp_path / "conf")
    assert ask().stdout.strip() == str(tmp_path / "conf")
    shutil.copytree(conf_dir(), tmp_path / "dogbreed" / "conf")
    assert ask().stdout.strip() == str(tmp_path / "dogbreed" / "conf")


@pytest.mark.slow
def test_config_loads_neither_torch_nor_lightning():
    code = "import sys, dogbreed.config.compose as c; c.compose(); assert not {'torch', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_errors_are_for_people():
    assert issubclass(ConfigError, DogbreedError)


@pytest.mark.parametrize("text", ["data.split=0.7,0.2,0.1", "data.split=[0.7,0.2,0.1]"])
def test_the_shares_of_a_split_are_one_value(text):
    assert compose([text])["data"]["split"] == [0.7, 0.2, 0.1]


def test_a_configuration_of_before_lacks_the_newer_keys():
    config = compose()
    older = {**config, "data": {key: value for key, value in config["data"].items() if key not in NEWER}}
    assert Config.from_dict(older) == Config.from_dict(config)
