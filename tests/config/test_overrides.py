import json
import math
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from dogbreed.config.overrides import SHORT, dotted, quote, split_argv, to_overrides, to_wire
from dogbreed.core.errors import DogbreedError


def parse(override: str) -> tuple[str, object]:
    parsed = OverridesParser.create().parse_override(override)
    return parsed.key_or_group, parsed.value()


def flags(wire: dict[str, str]) -> list[str]:
    return [word for name, value in wire.items() for word in (f"--{name}", value)]


def through_the_container(wire: dict[str, str]) -> dict[str, str]:
    """As the training toolkit hands values on: read as JSON where they are JSON, and written as text again."""

    def passed(value: str) -> str:
        try:
            read = json.loads(value)
        except ValueError:
            return value
        return "" if read is None else str(read)

    return {name: passed(value) for name, value in wire.items()}


def test_flags_and_overrides_mix_in_order():
    argv = ["--batch-size", "64", "seed=3", "--lr=0.1", "--data__num_workers", "2", "--data.resize", "crop"]
    assert to_overrides(argv) == [
        "data.batch_size=64",
        "seed=3",
        "model.lr=0.1",
        "data.num_workers=2",
        "data.resize=crop",
    ]


@pytest.mark.parametrize(
    "name", ["batch-size", "batch_size", "data__batch_size", "data__batch-size", "data.batch_size"]
)
def test_spellings_of_a_name(name):
    assert dotted(name) == "data.batch_size"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("-1", -1),
        ("1e-05", 1e-05),
        ("True", True),
        ("False", False),
        ("true", True),
        ("null", None),
        ("none", "none"),
        ("vgg16", "vgg16"),
        ("1_0", "1_0"),
        ("007", "007"),
        ("", ""),
        ("a b", "a b"),
        ("[1,2]", "[1,2]"),
        ("{a: 1}", "{a: 1}"),
        ("32,64", "32,64"),
        ("s3://bucket/a=b", "s3://bucket/a=b"),
        ("it's", "it's"),
        ("C:\\dogs\\", "C:\\dogs\\"),
        ("~/dogs (new)/*", "~/dogs (new)/*"),
    ],
)
def test_the_value_of_a_flag_arrives(text, value):
    for argv in ([f"--data__root={text}"], ["--data__root", text]):
        key, arrived = parse(to_overrides(argv)[0])
        assert key == "data.root"
        assert (arrived, type(arrived)) == (value, type(value))


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "${" not in text))
@pytest.mark.slow
def test_any_text_survives_hydras_grammar(text):
    value = parse(f"data.root={quote(text)}")[1]
    if isinstance(value, str):
        assert value == text
    elif value is None or isinstance(value, bool):
        assert str(value).lower() == text.lower().replace("null", "none")
    else:
        assert value == float(text) or (math.isnan(value) and "nan" in text.lower())


def test_an_interpolation_stays_one():
    assert to_overrides(["--data__root", "${oc.env:HOME}/dogs"]) == ["data.root='${oc.env:HOME}/dogs'"]


def test_hydras_flags_pass_with_their_values_and_come_first():
    argv = ["seed=1", "-m", "--config-dir", "my conf", "--lr", "0.1", "--config-name=other", "~search.space.data"]
    given, overrides = split_argv(argv)
    assert given == ["-m", "--config-dir", "my conf", "--config-name", "other"]
    assert overrides == ["seed=1", "model.lr=0.1", "~search.space.data"]
    assert to_overrides(["--info", "seed=1"]) == ["--info", "all", "seed=1"]
    assert to_overrides(["-i", "defaults"]) == ["-i", "defaults"]
    assert to_overrides(["-c", "job", "--resolve", "-p", "data"]) == ["-c", "job", "--resolve", "-p", "data"]


def test_what_lightning_appends_for_other_processes_passes():
    appended = ['hydra.run.dir="."', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    assert to_overrides(["model.lr=0.1", *appended]) == ["model.lr=0.1", *appended]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--lr"], "--lr needs a value"),
        (["--lr", "--epochs", "3"], "--lr needs a value"),
        (["--lr", "-m"], "--lr needs a value"),
        (["--lr", "trainer.max_epochs=3"], "--lr needs a value"),
        (["--config-dir"], "--config-dir needs a value"),
        (["--cfg"], "--cfg needs a value"),
        (["--cfg", "jobb"], "it takes one of: job, hydra, all"),
        (["--info", "everything"], "it takes one of: all, config"),
        (["--multirun=3"], "--multirun takes no value"),
        (["-lr", "3"], "-lr is not a flag; names take two dashes"),
    ],
)
def test_bad_flags_say_what_is_wrong(argv, says):
    with pytest.raises(DogbreedError, match=says):
        to_overrides(argv)


def test_wire_names_and_values():
    settings = {
        "model.lr": 1e-05,
        "data.batch_size": 64,
        "data.num_workers": 2,
        "data.download": False,
        "data.url": None,
    }
    wire = to_wire({**settings, "seed": 0, "trainer.precision": "bf16-mixed"})
    assert wire == {
        "lr": "1e-05",
        "batch-size": "64",
        "data__num_workers": "2",
        "data__download": "False",
        "data__url": "NULL",
        "seed": "0",
        "trainer__precision": "bf16-mixed",
    }
    assert [dotted(name) for name in wire] == [*settings, "seed", "trainer.precision"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.root", "/opt/dogs", "data.root='/opt/dogs' cannot travel as a hyperparameter: SageMaker passes"),
        ("data.root", "two words", "SageMaker passes letters"),
        ("data.root", "", "SageMaker passes letters"),
        ("data.root", "dogs\n", "SageMaker passes letters"),
        ("data.root", "-x", "would arrive as a flag"),
        ("resume", "2024", "would arrive as a number"),
        ("resume", "TRUE", "would arrive as a number, true"),
        ("resume", "Infinity", "would arrive as a number"),
        ("trainer.devices", [0, 1], "not a plain number"),
        ("data__root", "x", "data__root cannot travel"),
        ("data.batch-size", 3, "data.batch-size cannot travel"),
        ("epochs", 3, "epochs cannot travel"),
        ("loggers.csv name", "x", "cannot travel"),
        ("resolve", 1, "resolve cannot travel"),
        ("sagemaker.role", "x", "are for the launcher alone"),
    ],
)
def test_what_cannot_travel_says_why(key, value, says):
    with pytest.raises(DogbreedError) as refused:
        to_wire({key: value})
    assert says in str(refused.value)


part = st.from_regex(r"[a-z]([a-z0-9]|_(?!_)(?=[a-z0-9]))*", fullmatch=True)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.from_regex(r"[A-Za-z0-9_.+-]+", fullmatch=True)
)


@given(
    st.dictionaries(st.lists(part, min_size=1, max_size=3).map(".".join) | st.sampled_from([*SHORT.values()]), scalars)
)
@pytest.mark.slow
def test_settings_return_from_the_wire_as_they_were(settings):
    wire = {}
    for key, value in list(settings.items()):
        try:
            wire |= to_wire({key: value})
        except DogbreedError:
            del settings[key]
    for passed in (wire, through_the_container(wire)):
        arrived = dict(parse(override) for override in to_overrides(flags(passed)))
        assert arrived == settings
        kinds = {key: type(value) for key, value in arrived.items()}
        assert kinds == {key: type(value) for key, value in settings.items()}


def test_only_the_standard_library_is_imported():
    foreign = {"torch", "lightning", "hydra", "omegaconf"}
    code = f"import sys, dogbreed.config.overrides; assert not {foreign} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
