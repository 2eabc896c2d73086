"""MLflow in a job: what travels, what its role may do, and what the real logger asks SageMaker for."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import mlflow
import pytest
import yaml
from lightning.pytorch.loggers import MLFlowLogger
from support.cloud import SMALL

from dogbreed.training.loggers import build_loggers, log_artifacts
from launch import policies
from launch.rehearsal.container import Container
from launch.rehearsal.environment import Environment

pytestmark = pytest.mark.slow
SERVER = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/dogs"
APP = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-app/app-ABCDEF012345"
WORDS = ("mode=plan", *SMALL, "logger=mlflow")


def to(address: str) -> str:
    return f"loggers.mlflow.tracking_uri={address}"


@pytest.mark.parametrize("kind", ["train", "tune"])
def test_the_address_travels_in_a_variable_and_the_packages_are_installed(run, kind):
    said = run(kind, *WORDS, to(SERVER))
    request = yaml.safe_load(said.out)
    job = request.get("TrainingJobDefinition", request)
    assert job["Environment"]["MLFLOW_TRACKING_URI"] == SERVER
    settings = job.get("StaticHyperParameters") or job["HyperParameters"]
    assert settings["logger"] == "mlflow"
    assert not [name for name in settings if "loggers" in name]
    assert f"# MLflow: {SERVER}\n" in said.out
    assert ", sagemaker-mlflow>=" in said.out


def test_without_an_address_the_plan_says_where_the_records_are(run):
    said = run("train", *WORDS)
    assert "# MLflow: mlruns/ in output.tar.gz of the job, since loggers.mlflow.tracking_uri names no" in said.out
    assert "mlflow-skinny>=" in said.out
    assert "sagemaker-mlflow" not in said.out
    assert "MLFLOW_TRACKING_URI" not in said.out
    assert "mlflow" not in run("train", *WORDS[:-1]).out


@pytest.mark.parametrize(
    "address", [SERVER.replace("us-east-1", ""), SERVER.replace("server/", "server:"), "arn:aws:s3"]
)
def test_an_address_of_another_form_is_one_sentence(run, address):
    said = run("train", *WORDS, to(address))
    assert (said.code, said.out) == (2, "")
    assert f"={address} is no MLflow of SageMaker; it looks like arn:aws:sagemaker:" in said.err


def test_without_network_it_would_not_be_reached(run):
    said = run("train", *WORDS, to("http://tracking:5000"), "sagemaker.isolate=true")
    assert said.err.startswith("error: sagemaker.isolate=true leaves the job without network, so loggers.mlflow.")


def test_a_rehearsal_stays_here(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://of-this-shell.example")
    request = yaml.safe_load(run("train", *WORDS, to(SERVER), "sagemaker.environment={OTHER: kept}").out)
    s3 = SimpleNamespace(variables=dict)
    variables = Container(request, Environment(tmp_path), s3).variables(tmp_path)
    assert "MLFLOW_TRACKING_URI" not in variables
    assert variables["OTHER"] == "kept"


def allowed(capsys, address: str) -> dict[str, list[str]]:
    """The actions that the role of a job may do, by resource."""
    capsys.readouterr()
    assert policies.main(["execution", "sagemaker.bucket=mine", "logger=mlflow", to(address)]) == 0
    statements = json.loads(capsys.readouterr().out)["Statement"]
    return {resource: each["Action"] for each in statements for resource in each["Resource"]}


class _Service(BaseHTTPRequestHandler):
    """SageMaker's MLflow, as far as a logger asks; notes what was asked for, and in whose name."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].rpartition("/mlflow/")[2]
        self.server.asked.append((path, dict(self.headers), body))
        name = str(self.server.server_port)  # MLflow remembers runs by their names
        info = {"run_id": name, "experiment_id": "1", "status": "RUNNING", "artifact_uri": self.server.artefacts}
        run = {"run": {"info": info}, "run_info": info}
        answers = {"experiments/create": {"experiment_id": "1"}, "runs/log-batch": {}, "runs/update": run}
        known = answers | {"runs/create": run, "runs/get": run}
        self.send_response(200 if path in known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(known.get(path, {"error_code": "RESOURCE_DOES_NOT_EXIST"})).encode())

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    server.asked, server.artefacts = [], (tmp_path / "artefacts").as_uri()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets itself; undone afterwards
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    yield server
    mlflow.set_tracking_uri("")
    server.shutdown()
    server.server_close()


OPERATIONS = {
    "experiments/get-by-name": "GetExperimentByName",
    "experiments/create": "CreateExperiment",
    "runs/create": "CreateRun",
    "runs/get": "GetRun",
    "runs/log-batch": "LogBatch",
    "runs/update": "UpdateRun",
}


@pytest.mark.parametrize(
    ("address", "header"), [(SERVER, "x-mlflow-sm-tracking-server-arn"), (APP, "x-sm-mlflow-app-arn")]
)
def test_the_role_may_do_what_the_logger_asks_for_and_no_more(service, capsys, tmp_path, address, header):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "report.html").write_text("report")
    (tmp_path / "run" / "model" / "model.json").write_text("{}")
    (logger,) = build_loggers({"mlflow": {"tracking_uri": address}}, tmp_path / "run")
    assert isinstance(logger, MLFlowLogger)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"val_loss": 0.5}, step=1)
    assert log_artifacts([logger], tmp_path / "run", {}) == []
    logger.finalize("success")
    assert (tmp_path / "artefacts" / "model" / "model.json").is_file()
    for _, headers, _ in service.asked:
        assert {name.lower(): value for name, value in headers.items()}[header] == address
        assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=testing/")
    actions = {f"sagemaker-mlflow:{OPERATIONS[path]}" for path, *_ in service.asked}
    may = allowed(capsys, address)
    assert actions | ({"sagemaker:CallMlflowAppApi"} if address == APP else set()) == set(may[address])
    assert "s3:PutObject" in may["arn:aws:s3:::mine/dogbreed/mlflow/*"]
