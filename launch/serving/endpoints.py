"""Makes what a deployment describes, waits until it answers, and takes everything back if it does not."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from dogbreed.core.errors import DogbreedError
from launch.aws.errors import AwsError, explained
from launch.aws.naming import MARK, split_s3
from launch.aws.storage import Bucket
from launch.serving.request import DIMENSION, EXPIRES, SCALING, Deployment, Step

POLL_SECONDS = 10.0
START_SECONDS = 3600  # the longest that SageMaker itself lets a start take
# SageMaker neither deletes nor updates an endpoint in these states.
UNDER_WAY = ("Creating", "Updating", "SystemUpdating", "RollingBack")
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

# Names of a resource's parameter and of its calls.
_SNAKE = {"Model": "model", "EndpointConfig": "endpoint_config", "Endpoint": "endpoint"}
_NAMES = {"Model": "ModelName", "EndpointConfig": "EndpointConfigName", "Endpoint": "EndpointName"}


class Clients(Protocol):
    """Where boto3's clients come from."""

    def client(self, service: str) -> Any:
        """The client of a service."""


class DeploymentFailed(DogbreedError):
    """The endpoint did not come up, or answered wrongly; nothing of it is left."""


class Deployer:
    """Carries a deployment out.

    Args:
        clients: boto3's clients.
        test: Asks the endpoint of this name for what it should know; raises where it does not.
        say: Gets a line for a person now and then.
        poll: Seconds between two looks at an endpoint.
        kms_key: For what is uploaded; None takes S3's own key.
    """

    def __init__(
        self,
        clients: Clients,
        test: Callable[[str], None],
        *,
        say: Callable[[str], None] = print,
        poll: float = POLL_SECONDS,
        kms_key: str | None = None,
    ) -> None:
        self.sagemaker = clients.client("sagemaker")
        self.s3 = clients.client("s3")
        self.clients = clients
        self.test, self.say, self.poll = test, say, poll
        self.kms_key = kms_key

    def deploy(self, deployment: Deployment, *, update: bool = False) -> str | None:
        """Makes the endpoint and tests it.

        Args:
            deployment: What to make.
            update: Whether an endpoint of this name may get the new model in place.

        Returns:
            Name of the settings that an update has replaced; None where it was none.

        Raises:
            DeploymentFailed: It did not come up or failed the test, and is gone again; an update went back.
            DogbreedError: The name is taken, or AWS refused.
        """
        there = self._found("Endpoint", deployment.name)
        if there is not None:
            self._may_update(deployment, there, update)
        self.upload(deployment)
        made: list[tuple[str, str]] = []
        try:
            for kind in ("Model", "EndpointConfig"):
                name = self._make_once(kind, deployment.request(f"Create{kind}"))
                made += [(kind, name)] if name else []
            if there is None:
                self._create("Endpoint", deployment.request("CreateEndpoint"))
                made.append(("Endpoint", deployment.name))
            elif there["EndpointConfigName"] != deployment.request("CreateEndpoint")["EndpointConfigName"]:
                made.append(("Update", str(there["EndpointConfigName"])))
                self._switch(deployment)
            self.wait(deployment.name, deployment.request("CreateEndpoint")["EndpointConfigName"])
            self.scale(deployment)
            self.say(f"Testing {deployment.name}")
            self.test(deployment.name)
            if there is not None:
                self._tag(deployment)
        except BaseException as error:  # whatever it was: nothing that costs is left behind
            self._take_back(deployment.name, made)
            if not isinstance(error, DogbreedError):
                raise
            gone = " What was made is gone again." if made else ""
            raise DeploymentFailed(f"{str(error).rstrip('.')}.{gone}") from error
        replaced = None if there is None else str(there["EndpointConfigName"])
        return None if replaced == deployment.request("CreateEndpoint")["EndpointConfigName"] else replaced

    def batch(self, deployment: Deployment) -> dict[str, Any]:
        """Runs a transform job to its end.

        Returns:
            What DescribeTransformJob says then.

        Raises:
            DogbreedError: It failed or was stopped, or AWS refused.
        """
        self.upload(deployment)
        job = deployment.request("CreateTransformJob")
        model = self._make_once("Model", deployment.request("CreateModel"))
        try:
            with explained(f"starting {deployment.name}"):
                self.sagemaker.create_transform_job(**job)
            return self._wait_for_batch(deployment.name)
        finally:
            if model:
                self.delete("Model", model)

    # Steps

    def upload(self, deployment: Deployment) -> None:
        """Puts the model's archive where the requests look for it, unless it is there."""
        name, key = split_s3(deployment.model_uri, "sagemaker.bucket")
        bucket = self._bucket(deployment, name)
        if not bucket.check(may_lack=True):
            bucket.make()
        if bucket.has(key):  # its name says what is in it
            self.say(f"The model is there already: {deployment.model_uri}")
        else:
            with TemporaryDirectory(prefix="dogbreed-deploy-") as folder:
                bucket.send({key: deployment.archive.write(Path(folder) / "model.tar.gz")})
        if deployment.photographs:
            source = deployment.request("CreateTransformJob")["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
            name, key = split_s3(source, "input")
            found = sorted(file for file in deployment.photographs.rglob("*") if file.suffix.lower() in PHOTOGRAPHS)
            if not found:
                raise DogbreedError(f"{deployment.photographs} holds no photograph.")
            files = {f"{key}/{file.relative_to(deployment.photographs).as_posix()}": file for file in found}
            self._bucket(deployment, name).send(files)

    def _bucket(self, deployment: Deployment, name: str) -> Bucket:
        return Bucket(self.s3, name, deployment.place.account, deployment.place.region, self.kms_key)

    def _make_once(self, kind: str, request: Mapping[str, Any]) -> str | None:
        """Makes a thing whose name says what is in it; returns the name, or None where it is there."""
        name = str(request[_NAMES[kind]])
        if self._found(kind, name) is not None:
            return None
        self._create(kind, request)
        return name

    def _create(self, kind: str, request: Mapping[str, Any]) -> None:
        with explained(f"making {request[_NAMES[kind]]}"):
            getattr(self.sagemaker, f"create_{_SNAKE[kind]}")(**request)

    def _switch(self, deployment: Deployment) -> None:
        settings = deployment.request("CreateEndpoint")["EndpointConfigName"]
        with explained(f"updating {deployment.name}"):
            self.sagemaker.update_endpoint(EndpointName=deployment.name, EndpointConfigName=settings)

    def _tag(self, deployment: Deployment) -> None:
        """What an endpoint that was there serves now, and until when; where no end was given, the former one stays."""
        wanted = deployment.request("CreateEndpoint")["Tags"]
        with explained(f"tagging {deployment.name}"):
            arn = self.sagemaker.describe_endpoint(EndpointName=deployment.name)["EndpointArn"]
            self.sagemaker.add_tags(ResourceArn=arn, Tags=wanted)
            tags = {tag["Key"]: tag["Value"] for tag in self.sagemaker.list_tags(ResourceArn=arn)["Tags"]}
        if EXPIRES in tags:
            self.say(f"{deployment.name} expires at {tags[EXPIRES]}")

    def wait(self, name: str, settings: str | None = None) -> None:
        """Until the endpoint is in service, saying now and then how it is.

        Args:
            name: Of the endpoint.
            settings: It should have then; SageMaker itself goes back to the former ones where an update fails.

        Raises:
            DeploymentFailed: It failed, with SageMaker's reason and the last line of its log; or took too long.
        """
        start, said = time.monotonic(), ""
        while True:
            with explained(f"looking at {name}"):
                told = self.sagemaker.describe_endpoint(EndpointName=name)
            status, seconds = str(told["EndpointStatus"]), time.monotonic() - start
            reason = " ".join(str(told.get("FailureReason", "no reason given")).split())
            if status == "InService" and settings not in (None, told["EndpointConfigName"]):
                back = f"{name} was put back to {told['EndpointConfigName']} by SageMaker"
                raise DeploymentFailed(f"{back}: {reason}{self._last_log_line(name)}")
            if status == "InService":
                self.say(f"{name} is in service after {seconds:.0f} s")
                return
            if status in ("Failed", "OutOfService", "UpdateRollbackFailed"):
                raise DeploymentFailed(f"{name} failed: {reason}{self._last_log_line(name)}")
            if seconds > START_SECONDS:
                raise DeploymentFailed(f"{name} is still {status} after {seconds / 60:.0f} minutes")
            line = f"{name}: {status}, {seconds // 60:.0f} min"
            if line != said:
                self.say(line)
                said = line
            time.sleep(self.poll)

    def scale(self, deployment: Deployment) -> None:
        """Sends what concerns auto scaling."""
        steps: list[Step] = [step for step in deployment.steps if step.service == SCALING]
        if not steps:
            return
        client = self.clients.client(SCALING)
        calls = {"RegisterScalableTarget": "register_scalable_target", "PutScalingPolicy": "put_scaling_policy"}
        for step in steps:
            with explained(f"sending {step.operation}"):
                getattr(client, calls[step.operation])(**step.request)

    def _wait_for_batch(self, name: str) -> dict[str, Any]:
        start, said = time.monotonic(), ""
        while True:
            with explained(f"looking at {name}"):
                told: dict[str, Any] = self.sagemaker.describe_transform_job(TransformJobName=name)
            status, seconds = str(told["TransformJobStatus"]), time.monotonic() - start
            if status == "Completed":
                return told
            if status in ("Failed", "Stopped"):
                reason = " ".join(str(told.get("FailureReason", "it was stopped")).split())
                raise DogbreedError(f"{name} ended as {status}: {reason}.")
            line = f"{name}: {status}, {seconds // 60:.0f} min"
            if line != said:
                self.say(line)
                said = line
            time.sleep(self.poll)

    # What is there, and taking it away

    def _found(self, kind: str, name: str) -> dict[str, Any] | None:
        """What is known of a thing; None where there is none of this name."""
        try:
            with explained(f"looking for {name}"):
                told: dict[str, Any] = self._call("describe", kind, name)
        except AwsError as error:
            if error.code in ("ValidationException", "ResourceNotFound") and "ould not find" in str(error):
                return None
            raise
        return told

    def _call(self, verb: str, kind: str, name: str) -> Any:
        return getattr(self.sagemaker, f"{verb}_{_SNAKE[kind]}")(**{_NAMES[kind]: name})

    def _may_update(self, deployment: Deployment, there: Mapping[str, Any], update: bool) -> None:
        with explained(f"reading the tags of {deployment.name}"):
            tags = self.sagemaker.list_tags(ResourceArn=there["EndpointArn"])["Tags"]
        if MARK not in tags:
            raise DogbreedError(
                f"There is an endpoint {deployment.name} that this project has not made; give name=OTHER."
            )
        if there["EndpointStatus"] not in ("InService", "Failed"):
            raise DogbreedError(f"{deployment.name} is {there['EndpointStatus']} just now; try again when it is done.")
        same = there["EndpointConfigName"] == deployment.request("CreateEndpoint")["EndpointConfigName"]
        if not update and not same:
            raise DogbreedError(
                f"There is an endpoint {deployment.name} with another model or on other machines; update=true puts "
                "this one in its place, name=OTHER makes a second."
            )
        if same:
            self.say(f"{deployment.name} is there already with just this model")

    def _take_back(self, name: str, made: list[tuple[str, str]]) -> None:
        """Undoes what was made, the last first; what cannot be undone is said, and what it stands on is left to it."""
        for kind, what in reversed(made):
            try:
                if kind == "Update":
                    there = self._settled(name)
                    if there is not None and there["EndpointConfigName"] != what:
                        with explained(f"putting {name} back"):
                            self.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=what)
                        self.wait(name, what)
                else:
                    self.delete(kind, what)
            except (DogbreedError, KeyboardInterrupt) as error:
                why = str(error) or "this was interrupted."
                self.say(f"{what} is still there: {why} Delete it: python launch/sagemaker_delete.py {name}")
                return

    def delete(self, kind: str, name: str) -> None:
        """Deletes a model, settings, or an endpoint, whose auto scaling goes first, and waits until it is gone."""
        if kind == "Endpoint":
            self._settled(name)
            self._delete_scaling(name)
        try:
            with explained(f"deleting {name}"):
                self._call("delete", kind, name)
        except AwsError as error:
            if "ould not find" not in str(error):
                raise
        deadline = time.monotonic() + START_SECONDS
        while kind == "Endpoint" and self._found(kind, name) is not None and time.monotonic() < deadline:
            time.sleep(self.poll)

    def _settled(self, name: str) -> dict[str, Any] | None:
        """Waits until SageMaker lets an endpoint be changed; what is known of it then, None where there is none."""
        deadline, said = time.monotonic() + START_SECONDS, False
        while (told := self._found("Endpoint", name)) is not None and told["EndpointStatus"] in UNDER_WAY:
            if time.monotonic() > deadline:
                raise DogbreedError(
                    f"{name} is still {told['EndpointStatus']}, and cannot be changed until it is done."
                )
            if not said:
                self.say(f"{name} is {told['EndpointStatus']}, and cannot be changed before that is done; waiting")
            said = True
            time.sleep(self.poll)
        return told

    def _delete_scaling(self, name: str) -> None:
        client = self.clients.client(SCALING)
        with explained(f"looking for the auto scaling of {name}"):
            told = client.describe_scalable_targets(ServiceNamespace="sagemaker", ScalableDimension=DIMENSION)
        for target in told["ScalableTargets"]:
            if target["ResourceId"].startswith(f"endpoint/{name}/"):
                with explained(f"ending the auto scaling of {name}"):
                    client.deregister_scalable_target(
                        ServiceNamespace="sagemaker", ScalableDimension=DIMENSION, ResourceId=target["ResourceId"]
                    )

    def _last_log_line(self, name: str) -> str:
        """What the container said last, where its log can be read."""
        group = f"/aws/sagemaker/Endpoints/{name}"
        with suppress(DogbreedError), explained("reading the log"):
            logs = self.clients.client("logs")
            streams = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)
            for stream in streams["logStreams"]:
                events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], limit=1)[
                    "events"
                ]
                if events:
                    return f"; its log ends with: {events[-1]['message'].strip()[:300]}"
        return ""
