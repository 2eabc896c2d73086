"""Makes what a deployment describes, waits until it answers, and takes everything back if it does not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.archive import Archive
from dogbreed.models.manifest import read_manifest
from dogbreed.serving.client import MAX_BYTES
from launch.aws.account import Account, Target
from launch.aws.errors import explained
from launch.aws.images import inference_image
from launch.aws.naming import MARK, parse_s3_uri
from launch.aws.pricing import Prices
from launch.aws.storage import Bucket
from launch.serving import certificates, wheels
from launch.serving.cost import check_cost
from launch.serving.delete import delete_unused
from launch.serving.guardrails import BY_SCHEDULER
from launch.serving.invoke import IMAGES
from launch.serving.request import EXPIRES, SCALING, Deployment, describe
from launch.serving.resources import delete_resource, find, scalable_targets, settled, wait
from launch.serving.smoke_test import EndpointProbe

MAX_BYTES_OF_KIND = {"serverless": 4 * 2**20, "realtime": MAX_BYTES}  # of a request
BATCH_SECONDS = 5 * 86400  # the longest that a transform job may take


class DeploymentFailed(DogbreedError):
    """The endpoint did not come up, or answered wrongly; what was made is cleaned up."""


def submit(config: Mapping[str, Any], model: Path, archive: Archive) -> None:
    """Deploy a model with the certificate that it has, or gets.

    Args:
        config: A composed configuration.
        model: As the person gave it.
        archive: Of the model.

    Raises:
        DogbreedError: It could cost too much, is not certified, AWS refused, or it did not answer as certified.
    """
    images, paths = read_images(config)
    account = Account(config)
    deployment = describe_model(config, archive, account.with_role())
    check_cost(config, deployment, Prices(config))
    certificate = certificates.certify(model, archive, images, paths, deployment.archive)
    carry_out(config, deployment, account, EndpointProbe(config, account, deployment, images, certificate))


def describe_model(config: Mapping[str, Any], archive: Archive, target: Target) -> Deployment:
    """Describe the deployment of a model for a target, from now on."""
    backbone = str(read_manifest(archive.folder)["backbone"])
    return describe(config, archive, backbone, target, inference_image(config, target.region), datetime.now(UTC))


def carry_out(config: Mapping[str, Any], deployment: Deployment, account: Account, probe: EndpointProbe) -> None:
    """Deploy, test, and delete what an update has replaced."""
    deployer = Deployer(account, probe, kms_key=config["sagemaker"]["kms_key"])
    if deployment.kind == "batch":
        deployer.batch(deployment)
        probe(deployment.name)
        return
    if replaced := deployer.deploy(deployment, update=config["sagemaker"]["endpoint"]["update"]):
        delete_unused(account, replaced)
    probe.report()


def read_images(config: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Read what to test with.

    Returns:
        The files' bytes by name, and the paths among the names.

    Raises:
        DogbreedError: `photo` names no image.
    """
    photo = config["sagemaker"]["endpoint"]["photo"]
    if photo is None:
        from dogbreed.data.edge_cases import drawn  # here: it takes numpy, and --help needs none

        return {"odd/drawn.jpg": drawn()}, []
    path = Path(str(photo))
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    images = [file for file in files if file.is_file() and file.suffix.lower() in IMAGES]
    if not images:
        raise DogbreedError(f"photo={photo} is no image, nor a folder of images.")
    kind, size = config["sagemaker"]["endpoint"]["kind"], images[0].stat().st_size
    limit = MAX_BYTES_OF_KIND.get(kind, size)
    if size > limit:  # before anything is made that it cannot test
        raise DogbreedError(f"{images[0]} has {size:,} bytes, and kind={kind} takes {limit:,} per request.")
    return {str(file): file.read_bytes() for file in images}, [str(file) for file in images]


class Deployer:
    """Carries a deployment out.

    Args:
        account: That it goes to.
        test: Gets the endpoint's name; raises where it does not answer as it should.
        say: Gets a line for a person now and then.
        kms_key: For what is uploaded; None takes S3's own key.
    """

    def __init__(
        self,
        account: Account,
        test: Callable[[str], None],
        *,
        say: Callable[[str], None] = print,
        kms_key: str | None = None,
    ) -> None:
        self.account, self.test, self.say, self.kms_key = account, test, say, kms_key
        self.sagemaker, self.s3 = account.client("sagemaker"), account.client("s3")

    def deploy(self, deployment: Deployment, *, update: bool = False) -> str | None:
        """Make the endpoint and test it.

        Args:
            deployment: What to make.
            update: Whether an endpoint of this name may get the new model in place.

        Returns:
            Name of the settings that an update has replaced; None where it was none.

        Raises:
            DeploymentFailed: It did not come up or failed the test, and is gone again; an update went back.
            DogbreedError: The name is taken, or AWS refused.
        """
        name, settings = deployment.name, str(deployment.request("CreateEndpoint")["EndpointConfigName"])
        present = find(self.sagemaker, "Endpoint", name)
        if present is not None:
            self._check_update(deployment, present, update)
        former = None if present is None else str(present["EndpointConfigName"])
        self.upload(deployment)
        guard = None if former in (None, settings) else self._guard(deployment)
        with self._watched(deployment, guard), self._undone_on_error(name) as made:
            for kind in ("Model", "EndpointConfig"):
                if self._create_once(kind, deployment.request(f"Create{kind}")):
                    made.append((kind, str(deployment.request(f"Create{kind}")[f"{kind}Name"])))
            if former is None:
                self._create("Endpoint", deployment.request("CreateEndpoint"))
                made.append(("Endpoint", name))
            elif former != settings:
                made.append(("Update", former))
                serverless = deployment.kind == "serverless"  # has no instances that could be kept
                self._update(
                    name, settings, scales=not serverless and bool(scalable_targets(self.account, name)), guard=guard
                )
            self._wait(name, settings, guard)
            self._scale(deployment)
            self.say(f"Testing {name}")
            self.test(name)
            if present is not None:
                self._tag(deployment)
            self._schedule(deployment)
        return None if former == settings else former

    def batch(self, deployment: Deployment) -> None:
        """Run a transform job to its end.

        Raises:
            DogbreedError: It failed or was stopped, or AWS refused.
        """
        self.upload(deployment)
        model = deployment.request("CreateModel")
        created = self._create_once("Model", model)
        try:
            with explained(f"starting {deployment.name}"):
                self.sagemaker.create_transform_job(**deployment.request("CreateTransformJob"))
            self.say(f"Waiting for {deployment.name}")
            waiter = self.sagemaker.get_waiter("transform_job_completed_or_stopped")
            wait(waiter, BATCH_SECONDS, TransformJobName=deployment.name)
            with explained(f"looking at {deployment.name}"):
                job = self.sagemaker.describe_transform_job(TransformJobName=deployment.name)
            if job["TransformJobStatus"] != "Completed":
                reason = _reason(job, "no reason given")
                raise DogbreedError(f"{deployment.name} ended as {job['TransformJobStatus']}: {reason}.")
        finally:
            if created:
                delete_resource(self.account, "Model", model["ModelName"], self.say)

    # Steps

    def upload(self, deployment: Deployment) -> None:
        """Put the model's archive where the requests look for it, unless it is there, and the images of a batch."""
        name, key = parse_s3_uri(deployment.model_uri, "sagemaker.bucket")
        bucket = self._bucket(deployment, name)
        if not bucket.check(may_lack=True):
            bucket.make()
        if bucket.has(key):  # its name says what is in it
            self.say(f"The model is there already: {deployment.model_uri}")
        else:
            wheels.fetch(deployment.archive)
            with TemporaryDirectory(prefix="dogbreed-deploy-") as folder:
                bucket.send({key: deployment.archive.write(Path(folder) / "model.tar.gz")})
        if root := deployment.images:
            source = deployment.request("CreateTransformJob")["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
            name, key = parse_s3_uri(source, "input")
            files = sorted(file for file in root.rglob("*") if file.suffix.lower() in IMAGES)
            if not files:
                raise DogbreedError(f"{root} holds no image.")
            keys = {f"{key}/{file.relative_to(root).as_posix()}": file for file in files}
            self._bucket(deployment, name).send(keys)

    def _bucket(self, deployment: Deployment, name: str) -> Bucket:
        return Bucket(self.s3, name, deployment.target.account, deployment.target.region, self.kms_key)

    def _create_once(self, kind: str, request: Mapping[str, Any]) -> bool:
        """Create a resource whose name says what is in it; return False where it is there."""
        if find(self.sagemaker, kind, request[f"{kind}Name"]) is not None:
            return False
        self._create(kind, request)
        return True

    def _create(self, kind: str, request: Mapping[str, Any]) -> None:
        calls = {"Model": "create_model", "EndpointConfig": "create_endpoint_config", "Endpoint": "create_endpoint"}
        with explained(f"making {request[f'{kind}Name']}"):
            getattr(self.sagemaker, calls[kind])(**request)

    def _guard(self, deployment: Deployment) -> dict[str, Any] | None:
        """Return how an update is watched; None where it is not."""
        updates = deployment.requests("UpdateEndpoint")
        config: dict[str, Any] | None = updates[0].get("DeploymentConfig") if updates else None
        return config

    @contextmanager
    def _watched(self, deployment: Deployment, guard: Mapping[str, Any] | None) -> Iterator[None]:
        """Have the alarms of an update for as long as it takes."""
        names = [each["AlarmName"] for each in guard["AutoRollbackConfiguration"]["Alarms"]] if guard else []
        cloudwatch = self.account.client("cloudwatch") if names else None
        try:
            for alarm in deployment.requests("PutMetricAlarm"):
                if cloudwatch and alarm["AlarmName"] in names:
                    with explained(f"making the alarm {alarm['AlarmName']}"):
                        cloudwatch.put_metric_alarm(**alarm)
            yield
        finally:
            if cloudwatch:
                with explained("deleting the alarms of the update"):
                    cloudwatch.delete_alarms(AlarmNames=names)

    def _schedule(self, deployment: Deployment) -> None:
        """Have the endpoint deleted when it expires; one that was to be deleted at another time gets the new one."""
        for request in deployment.requests("CreateSchedule"):
            client = self.account.client("scheduler")
            with explained(f"scheduling the end of {deployment.name}"):
                try:
                    client.create_schedule(**request)
                except client.exceptions.ConflictException:
                    client.update_schedule(**request)
            self.say(f"EventBridge Scheduler deletes it: {request['ScheduleExpression']}, UTC")

    def _update(self, name: str, settings: str, *, scales: bool, guard: Mapping[str, Any] | None = None) -> None:
        """Put other settings behind an endpoint; one that has scaled out keeps its instances, and loses no request."""
        retain: dict[str, Any] = {"DeploymentConfig": guard} if guard else {}
        if scales:
            retain["RetainAllVariantProperties"] = True
            retain["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": "DataCaptureConfig"}]
        with explained(f"updating {name}"):
            self.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=settings, **retain)

    def _tag(self, deployment: Deployment) -> None:
        """Tag an updated endpoint with what it serves and until when; without expires=, the former end stays."""
        with explained(f"tagging {deployment.name}"):
            arn = self.sagemaker.describe_endpoint(EndpointName=deployment.name)["EndpointArn"]
            self.sagemaker.add_tags(ResourceArn=arn, Tags=deployment.request("CreateEndpoint")["Tags"])
            tags = {tag["Key"]: tag["Value"] for tag in self.sagemaker.list_tags(ResourceArn=arn)["Tags"]}
        if EXPIRES in tags:
            self.say(f"{deployment.name} expires at {tags[EXPIRES]}")

    def _wait(self, name: str, settings: str, guard: Mapping[str, Any] | None = None) -> None:
        """Wait until the endpoint is in service with these settings, and no longer watched.

        Raises:
            DeploymentFailed: It failed, with SageMaker's reason and the last line of its log, or took too long; or
                SageMaker itself went back to the former settings, where an update fails.
        """
        more = guard["BlueGreenUpdatePolicy"]["MaximumExecutionTimeoutInSeconds"] if guard else 0
        endpoint = settled(self.sagemaker, name, self.say, more) or {
            "EndpointStatus": "gone",
            "EndpointConfigName": settings,
        }
        reason = _reason(endpoint, "no reason given")
        if endpoint["EndpointStatus"] != "InService":
            raise DeploymentFailed(f"{name} is {endpoint['EndpointStatus']}: {reason}{self._last_log_line(name)}")
        if endpoint["EndpointConfigName"] != settings:
            back = f"{name} was put back to {endpoint['EndpointConfigName']} by SageMaker"
            raise DeploymentFailed(f"{back}: {reason}{self._last_log_line(name)}")
        self.say(f"{name} is in service")

    def _scale(self, deployment: Deployment) -> None:
        """Send what concerns auto scaling; the alarm calls the policy that was made before it."""
        calls = {"RegisterScalableTarget": "register_scalable_target", "PutScalingPolicy": "put_scaling_policy"}
        policy = ""
        for step in deployment.steps:
            with explained(f"sending {step.operation}"):
                if step.service == SCALING:
                    policy = getattr(self.account.client(SCALING), calls[step.operation])(**step.request).get(
                        "PolicyARN"
                    )
                elif "AlarmActions" in step.request:
                    self.account.client(step.service).put_metric_alarm(**{**step.request, "AlarmActions": [policy]})

    # What is there, and taking it back

    def _check_update(self, deployment: Deployment, present: Mapping[str, Any], update: bool) -> None:
        with explained(f"reading the tags of {deployment.name}"):
            tags = self.sagemaker.list_tags(ResourceArn=present["EndpointArn"])["Tags"]
        if BY_SCHEDULER in tags and deployment.expires and not deployment.requests("CreateSchedule"):
            raise DogbreedError(
                f"A schedule deletes {deployment.name} at another time; give scheduler_role= with expires= here, too."
            )
        if MARK not in tags:
            raise DogbreedError(
                f"There is an endpoint {deployment.name} that this project has not made; give name=OTHER."
            )
        if present["EndpointStatus"] not in ("InService", "Failed"):
            raise DogbreedError(f"{deployment.name} is {present['EndpointStatus']} now; try again when that is done.")
        same = present["EndpointConfigName"] == deployment.request("CreateEndpoint")["EndpointConfigName"]
        if not update and not same:
            raise DogbreedError(
                f"There is an endpoint {deployment.name} with another model or on other machines; update=true puts "
                "this one in its place, name=OTHER makes a second."
            )
        if same:
            self.say(f"{deployment.name} is there already with exactly this model")

    @contextmanager
    def _undone_on_error(self, name: str) -> Iterator[list[tuple[str, str]]]:
        """Undo what was made when anything goes wrong, whatever it is: nothing that costs is left behind."""
        made: list[tuple[str, str]] = []
        try:
            yield made
        except BaseException as error:
            self._undo(name, made)
            if not isinstance(error, DogbreedError):
                raise
            gone = " What was made is gone again." if made else ""
            raise DeploymentFailed(f"{str(error).rstrip('.')}.{gone}") from error

    def _undo(self, name: str, made: Sequence[tuple[str, str]]) -> None:
        """Undo the last first; say what cannot be undone, and leave it what it stands on."""
        for kind, former in reversed(made):
            try:
                if kind != "Update":
                    delete_resource(self.account, kind, former, self.say)
                    continue
                endpoint = settled(self.sagemaker, name, self.say)
                if endpoint is not None and endpoint["EndpointConfigName"] != former:
                    self._update(name, former, scales=bool(scalable_targets(self.account, name)))
                    self._wait(name, former)
            except (DogbreedError, KeyboardInterrupt) as error:
                reason = str(error) or "interrupted."
                self.say(f"{former} is still there: {reason} Delete it: python launch/sagemaker_delete.py {name}")
                return

    def _last_log_line(self, name: str) -> str:
        """Return what the container wrote last, where its log can be read."""
        group = f"/aws/sagemaker/Endpoints/{name}"
        with suppress(DogbreedError), explained("reading the log"):
            logs = self.account.client("logs")
            streams = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)
            for stream in streams["logStreams"]:
                log = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], limit=1)
                if log["events"]:
                    return f"; its log ends with: {log['events'][-1]['message'].strip()[:300]}"
        return ""


def _reason(description: Mapping[str, Any], otherwise: str) -> str:
    return " ".join(str(description.get("FailureReason", otherwise)).split())
