import errno
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from support.exports import export_tiny

from dogbreed.config import cli
from dogbreed.config.compose import compose, diff
from dogbreed.config.help import TRAIN_HELP
from dogbreed.config.overrides import SHORT
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError, Interrupted


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*argv, task=lambda config: None):
    return cli.run(task, prog="python -m dogbreed.train", help=TRAIN_HELP, argv=argv)


def command(body: str, *argv: str, **options) -> subprocess.CompletedProcess[str]:
    """Runs `body`, the body of a task, as a command of its own."""
    code = (
        "import sys\nfrom dogbreed.config.cli import run\n"
        f"def task(config):\n    {body}\n"
        "sys.exit(run(task, prog='x', help='A page.'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment, check=False, **options
    )


@pytest.mark.slow
def test_the_task_gets_a_plain_checked_configuration(tmp_path):
    seen = []
    arguments = [
        "--batch-size",
        "64",
        "--lr",
        "0.001",
        "trainer.devices=2",
        "loggers.csv={}",
        "--data__num_workers",
        "2",
    ]
    assert run(*arguments, task=seen.append) == 0
    overrides = ["data.batch_size=64", "model.lr=0.001", "trainer.devices=2", "loggers.csv={}", "data.num_workers=2"]
    assert seen == [compose(overrides)]
    assert all(type(group) in (dict, str, int, bool, type(None)) for group in seen[0].values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_exit_code_is_the_tasks():
    assert run(task=lambda config: 3) == 3
    assert run(task=lambda config: None) == 0


def test_what_was_set_around_hydra_is_restored(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    argv, seen = list(sys.argv), []
    assert run("--seed", "3", task=lambda config: seen.append(sys.argv[1:])) == 0
    assert seen == [["seed=3"]]  # what Lightning starts other processes of this run with
    assert sys.argv == argv
    assert os.environ["HYDRA_FULL_ERROR"] == "0"
    assert not GlobalHydra.instance().is_initialized()


def test_composing_within_a_run_works():
    seen = []
    assert run("seed=1", task=lambda config: seen.append(diff(compose(), config))) == 0
    assert seen == [["seed"]]


@pytest.mark.parametrize("flag", ["-m", "--multirun", "hydra.mode=MULTIRUN", "++hydra.mode=MULTIRUN"])
@pytest.mark.slow
def test_multirun_runs_each_and_leaves_nothing_behind(tmp_path, flag):
    seen = []
    assert run(flag, "seed=1,2", "loggers={csv: {}}", task=lambda config: seen.append(config)) == 0
    assert [config["seed"] for config in seen] == [1, 2]
    assert [config["loggers"] for config in seen] == [{"csv": {}}] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "folders"),
    [
        ("output_dir=runs", ["runs/0", "runs/1"]),
        ("output_dir=runs/${seed}", ["runs/1", "runs/2"]),
        ("output_dir=null", [None, None]),
        ("++output_dir=runs", ["runs/0", "runs/1"]),
        ("output_dir='my, runs'", ["my, runs/0", "my, runs/1"]),
        ("output_dir=my runs=2", ["my runs=2/0", "my runs=2/1"]),
        ("output_dir=a,b", ["a", "b", "a-2", "b-3"]),
        ("output_dir=a${data.size}", ["aNone", "aNone-1"]),
    ],
)
@pytest.mark.parametrize("flag", ["-m", "hydra.mode=MULTIRUN"])
@pytest.mark.slow
def test_runs_of_a_multirun_do_not_overwrite_each_other(given, folders, flag):
    seen = []
    assert run(flag, "seed=1,2", given, task=lambda config: seen.append(config["output_dir"])) == 0
    assert seen == folders


@pytest.mark.slow
def test_the_first_error_ends_a_multirun(capsys):
    seen = []

    def task(config):
        seen.append(config["seed"])
        raise DogbreedError("No breed here")

    assert run("-m", "seed=1,2", task=task) == 2
    assert seen == [1]
    assert capsys.readouterr().err == "error: No breed here\n"


@pytest.mark.slow
def test_what_lightning_appends_for_other_processes_is_understood():
    appended = ['hydra.run.dir="."', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    seen = []
    assert run("seed=5", *appended, task=seen.append) == 0
    assert seen == [compose(["seed=5"])]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["data.batchsize=3"], "Unknown key data.batchsize; did you mean data.batch_size?"),
        (["--batchsize", "3"], "Unknown key batchsize; did you mean data.batch_size?"),
        (["+data.batchsize=3"], "Unknown key data.batchsize; did you mean data.batch_size?"),
        (["--batch-size", "many"], "data.batch_size must be a whole number, not 'many'"),
        (["--lr"], "--lr needs a value: --lr VALUE or --lr=VALUE"),
        (["quickstart"], "quickstart is not an override; did you mean experiment=quickstart?"),
        (["data.root=${oc.env:NO_SUCH}"], "data.root refers to the environment variable NO_SUCH, which is not set"),
        (["--config-name", "nope"], "Cannot find primary config 'nope'. Check that it's in your config search path"),
        (
            ["--cfg", "job", "-m"],
            "Only one of --run, --multirun, --cfg, --info and --shell_completion can be specified",
        ),
        (["--cfg", "job", "data.batchsize=3"], "Unknown key data.batchsize; did you mean data.batch_size?"),
        (["-m", "data.batchsize=3,4"], "Unknown key data.batchsize; did you mean data.batch_size?"),
    ],
)
@pytest.mark.slow
def test_bad_use_is_one_sentence_and_exit_code_2(argv, sentence, capsys, tmp_path):
    ran = []
    assert run(*argv, task=ran.append) == 2
    assert capsys.readouterr() == ("", f"error: {sentence}\n")
    assert ran == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["hydra.job.name=train"]])
@pytest.mark.slow
def test_folders_that_hydra_cannot_use(more, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert run(f"hydra.run.dir={tmp_path}/file/run", task=print) == 2
    assert capsys.readouterr().err.startswith(
        f"error: Hydra cannot use the folder {tmp_path}/file/run (Not a directory)"
    )
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(*more, task=print) == 2
    assert "error: Hydra cannot use the folder that this was started in, which is gone" in capsys.readouterr().err


def raiser(error):
    def task(*_):
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (DogbreedError("No folder x"), 2, "error: No folder x\n"),
        (Interrupted("Stopped after epoch 2"), 130, "Stopped after epoch 2\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/best.pt"),
            2,
            "error: The disk is full while writing out/best.pt; free some space, or choose a folder on another disk\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "error: No permission to use /x (Permission denied)\n",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300),
            2,
            f"error: {'x' * 60}... is too long a name for this disk; choose another\n",
        ),
    ],
)
@pytest.mark.slow
def test_errors_of_a_task(error, code, printed, capsys):
    assert run(task=raiser(error)) == code
    assert capsys.readouterr().err == printed
    assert guard(raiser(error)) == code
    assert capsys.readouterr().err == printed


def test_a_full_disk_behind_another_error_is_found(capsys):
    def task():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error

    assert guard(task) == 2
    assert capsys.readouterr().err.startswith("error: The disk is full;")


def test_a_bug_keeps_its_traceback_without_hydras_frames(capsys):
    assert run(task=raiser(ValueError("a bug"))) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.endswith("ValueError: a bug\n")
    assert "hydra/" not in printed


def test_the_tasks_own_hydra_errors_are_not_taken_for_bad_use(capsys):
    from omegaconf.errors import ConfigKeyError

    assert run(task=raiser(ConfigKeyError("inside"))) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_help_page(capsys):
    assert run("--lr", "0.1", "--help", task=raiser(AssertionError())) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m dogbreed.train ")
    assert printed.endswith(TRAIN_HELP)
    lines = printed.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120


@pytest.mark.slow
def test_help_names_what_exists(capsys):
    assert all(f"--{name}" in TRAIN_HELP for name in SHORT)
    examples = [line.split()[3:] for line in TRAIN_HELP.splitlines() if line.startswith("  python -m dogbreed.train")]
    assert len(examples) == 3
    for example in examples:
        assert run(*example) == 0, capsys.readouterr().err


def test_printing_the_configuration(capsys):
    assert run("--cfg", "job", "--resolve", "--package", "data", "--batch-size", "8") == 0
    printed = capsys.readouterr().out
    assert "batch_size: 8" in printed
    assert "hydra" not in printed
    assert run("--info", "defaults") == 0
    assert "data/dogimages" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("dogbreed ")


def test_groups_from_a_folder_of_the_users(tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/small.yaml").write_text("# @package _global_\ndata:\n  batch_size: 4\n")
    seen = []
    assert (
        run("--config-dir", "mine", "experiment=small", task=lambda config: seen.append(config["data"]["batch_size"]))
        == 0
    )
    assert seen == [4]


@pytest.mark.slow
def test_as_a_process():
    done = command(
        "import json; print(json.dumps([config['seed'], config['model']['lr']]))", "--seed", "3", "--lr=1e-3"
    )
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [3, 0.001], "")
    done = command("pass", "--seeed", "3")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: Unknown key seeed; did you mean seed?\n")


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from dogbreed.core.cli import guard; sys.exit(guard(lambda: print('breed')))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_closed_stream_changes_nothing(closed, tmp_path):
    code = "import sys; from dogbreed.core.cli import guard; sys.exit(guard(lambda: print('犬', '\\udcff')))"
    line = f'"{sys.executable}" -c "{code}" {closed}'
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in ("", "\\u72ac \\udcff\n")


@pytest.mark.slow
def test_neither_torch_nor_lightning_is_loaded():
    done = command("print({'torch', 'lightning'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


LACKS = """
import runpy, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %(lacks)r:
            raise ModuleNotFoundError(f"there is no {name} here", name=name)

sys.meta_path.insert(0, Forbidden())
sys.argv = %(argv)r
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "lacks", "extra"),
    [
        ([str(ROOT / "launch/sagemaker_train.py"), "mode=plan"], ["boto3", "botocore", "sagemaker"], "sagemaker"),
        ([str(ROOT / "launch/sagemaker_tune.py"), "mode=plan"], ["sagemaker"], "sagemaker"),
        ([str(ROOT / "launch/sagemaker_upload.py")], ["boto3", "botocore", "sagemaker"], "sagemaker"),
        ([str(ROOT / "launch/sagemaker_delete.py")], ["boto3", "botocore", "sagemaker"], "sagemaker"),
        ([str(ROOT / "launch/policies.py"), "train"], ["boto3", "botocore", "sagemaker"], "sagemaker"),
        (["dogbreed.serve", "MODEL"], ["uvicorn"], "serve"),
        (["dogbreed.serve", "MODEL"], ["prometheus_client"], "serve"),
        (["dogbreed.certify", "."], ["starlette"], "serve"),
        (["dogbreed.tune", "data=sample"], ["optuna"], "search"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(argv, lacks, extra, tmp_path, tmp_path_factory):
    if "MODEL" in argv:
        argv = [argv[0], str(export_tiny(tmp_path_factory.mktemp("exported") / "model"))]
    program = LACKS % {"argv": argv, "lacks": lacks}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"{ROOT}[{extra}]" in line, "from a checkout, an extra is installed from it"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("dogbreed.predict", ["~/nowhere", "~/nowhere/rex.jpg"]),
        ("dogbreed.serve", ["~/nowhere", "--port=0"]),
        ("dogbreed.export", ["~/nowhere", "~/nowhere/rex.jpg", "--onnx=~/nowhere/x.onnx"]),
        ("dogbreed.certify", ["~/nowhere", "~/nowhere/rex.jpg"]),
        ("dogbreed.debug", ["~/nowhere"]),
        ("dogbreed.inspect", ["~/nowhere"]),
        ("dogbreed.inspect", [".", "--labels=~/nowhere/labels.csv"]),
        ("dogbreed.evaluate", ["~/nowhere"]),
        ("dogbreed.train", ["data.root=~/nowhere"]),
        ("dogbreed.train", ["--data__root=~/nowhere"]),
        ("dogbreed.tune", ["data.root=~/nowhere"]),
        ("dogbreed.cache.__main__", ["--dir=~/nowhere", "list"]),
        ("launch.sagemaker_invoke", ["http://127.0.0.1:9", "~/nowhere/rex.jpg"]),
    ],
)
@pytest.mark.slow
def test_a_tilde_that_no_shell_has_expanded(tmp_path, monkeypatch, capsys, module, arguments):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = import_module(module).main(arguments)
    said = capsys.readouterr()
    assert f"{tmp_path}/nowhere" in said.out + said.err
    assert code == (0 if "list" in arguments else 2)
    assert not (tmp_path / "~").exists()


def test_a_tilde_of_an_account_that_does_not_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module, argument in (("dogbreed.evaluate", "~nobody-here/model"), ("dogbreed.inspect", "~nobody-here/dogs")):
        assert import_module(module).main([argument]) == 2
        assert argument in capsys.readouterr().err
