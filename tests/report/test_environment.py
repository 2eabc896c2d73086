"""The command that a report gives: it leads to the very same configuration."""

import shlex
import subprocess
from pathlib import Path

import pytest

import dogbreed
from dogbreed.config.compose import compose, diff, overrides_of
from dogbreed.config.overrides import to_overrides
from dogbreed.config.reproduce import command, shown
from dogbreed.report.environment import machine, versions


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["data.root=/data/my dogs", "model.lr=0.001", "trainer.max_epochs=20"],
        ["experiment=quickstart"],
        ["experiment=finetune", "trainer.devices=[0,1]", "trainer.precision='16'"],
        ["loggers={csv: {name: 'a b'}}", "data.augment=none", "cache.dir=null", "model.weights='1e5'"],
        ["loggers={}", "trainer.enable_model_summary=true"],
        ["loggers=null"],
        ["search.space={model: {weight_decay: {choices: [0, 0.1]}}}"],
        ["data.root='/its=odd, {really} $HOME'"],
    ],
)
@pytest.mark.slow
def test_the_command_repeats_the_configuration(given):
    config = compose(given)
    line = command(config)
    program, arguments = shlex.split(line)[:3], shlex.split(line)[3:]
    assert program == ["python", "-m", "dogbreed.train"]
    assert diff(config, compose(to_overrides(arguments))) == []


def test_what_belongs_to_one_run_is_left_out():
    own = ["output_dir=there", "overwrite=true", "resume=last", "mode=plan", "job=j"]
    config = compose([*own, "seed=3", "sagemaker.role=arn:aws:iam::123456789012:role/r"])
    assert overrides_of(config) == ["data.root=data/dogImages", "seed=3"]


def test_machine_and_versions():
    assert {"cores", "GPU", "system"} <= machine().keys()
    assert all(machine().values())
    assert versions().keys() == {"dogbreed", "python", "torch", "torchvision", "lightning"}


def test_the_commit_of_a_checkout_stands_with_its_version():
    found = versions()["dogbreed"]
    git = ["git", "-C", str(Path(dogbreed.__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode:
        assert found == dogbreed.__version__
    else:
        version, commit = found.split(", commit ")
        assert version == dogbreed.__version__
        assert done.stdout.startswith(commit.removesuffix(" with changes"))


def test_a_page_does_not_show_what_belongs_to_an_account():
    config = compose(["sagemaker.role=arn:aws:iam::123456789012:role/r"])
    assert "sagemaker" not in shown(config)
    assert shown(config).keys() == config.keys() - {"sagemaker"}
