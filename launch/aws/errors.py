"""What AWS's errors mean, in one sentence with the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dogbreed.core.errors import DogbreedError

_EXPIRED = "The AWS credentials have expired while {doing}; renew them (aws sso login, or a new session token)."
# What is looked for in "CODE message", and the sentence; the first that matches counts.
_REFUSALS = (
    (r"^(ExpiredToken|ExpiredTokenException|RequestExpired|InvalidToken) ", _EXPIRED),
    (
        r"^(InvalidClientTokenId|UnrecognizedClientException|InvalidAccessKeyId|SignatureDoesNotMatch) ",
        "AWS does not know these credentials ({code}); check AWS_PROFILE, or aws configure.",
    ),
    (
        r"^(ResourceLimitExceeded|ServiceQuotaExceededException|LimitExceededException) ",
        "The account's quota does not allow this: {message}. Ask for more under Service Quotas, SageMaker, or use "
        "another sagemaker.instance_type, or a smaller search.parallel.",
    ),
    (
        r"InsufficientCapacity|CapacityError|InsufficientInstanceCapacity",
        "AWS has no machine of this type to spare now: {message}. Try later, another instance type or region.",
    ),
    (
        r"^(ResourceInUse|ConflictException) |already exists",
        "The name is taken while {doing}: {message}. Give another sagemaker.job_name, or leave it out.",
    ),
    (
        r"^(ThrottlingException|Throttling|TooManyRequestsException|RequestLimitExceeded|SlowDown) ",
        "AWS asks to slow down while {doing}, and did so after every retry; try again in a few minutes.",
    ),
    (
        r"^(AccessDenied|AccessDeniedException|UnauthorizedOperation|403|Forbidden) .*iam:PassRole",
        "You may not hand this role to SageMaker: {message}. Your user needs iam:PassRole for it "
        "(python launch/policies.py train).",
    ),
    (
        r"^(AccessDenied|AccessDeniedException|UnauthorizedOperation|403|Forbidden) ",
        "The credentials may not do this while {doing}: {message}. python launch/policies.py shows what is needed.",
    ),
    (
        r"(?i)assume.*role|RoleArn|role.*(invalid|does not exist|not exist)",
        "SageMaker cannot use the execution role: {message}. Check sagemaker.role and its trust policy "
        "(python launch/policies.py trust).",
    ),
    (
        r"^NoSuchBucket ",
        "The bucket does not exist while {doing}: {message}. Create it, or give another sagemaker.bucket.",
    ),
    (
        r"^(PermanentRedirect|AuthorizationHeaderMalformed|301) ",
        "The bucket is in another region while {doing}: {message}. Give sagemaker.region, or another bucket.",
    ),
    (
        r"^(ResourceNotFound|404|NoSuchKey) |(?i:could not find)",
        "This account and region have no such resource while {doing}: {message}.",
    ),
)
# The same for botocore's own errors, by the name of their class.
_FAILURES = (
    (
        r"^(NoCredentials|PartialCredentials|CredentialRetrieval)Error$",
        "There are no AWS credentials; give them with aws configure, aws sso login, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY. To plan a job or an endpoint, mode=plan needs none.",
    ),
    (r"Token|SSO", _EXPIRED),
    (
        r"^NoRegionError$",
        "No AWS region is set; give sagemaker.region=us-east-1 (or another, or --region), or AWS_REGION.",
    ),
    (r"^ProfileNotFound$", "{message}; check AWS_PROFILE, or aws configure list-profiles."),
    (
        r"Timeout|Connection|Endpoint|Proxy",
        "AWS could not be reached while {doing} ({message}); check the network, and run the same command again: what "
        "is there already is not sent twice.",
    ),
    (r"", "AWS's client failed while {doing}: {message}."),
)


class AwsError(DogbreedError):
    """AWS refused, or could not be reached.

    Attributes:
        code: AWS's own name of it, or that of botocore's error.
    """

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what botocore raises into a sentence.

    Args:
        doing: What is going on, such as "creating the training job", for the sentence.

    Raises:
        AwsError: In place of botocore's errors.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise translated(error, doing) from error


def translated(error: Exception, doing: str) -> AwsError:
    """Return the sentence for an error of botocore's or boto3's.

    Args:
        error: To explain.
        doing: What was going on.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        return _refused(response, doing)
    inner = error.__cause__ or error.__context__
    if type(error).__module__.startswith("boto3") and isinstance(inner, Exception):
        return translated(inner, doing)
    name, message = type(error).__name__, " ".join(str(error).split())
    sentence = next(text for pattern, text in _FAILURES if re.search(pattern, name))
    return AwsError(sentence.format(doing=doing, message=message), name)


def _refused(response: dict[str, Any], doing: str) -> AwsError:
    code = str(response["Error"].get("Code", ""))
    message = " ".join(str(response["Error"].get("Message", "")).split())
    answer = f"AWS says {message or repr(code)}"
    failed = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    other = "AWS failed while {doing}, after every retry: {message}. Try again in a few minutes."
    if not failed:
        other = "AWS refused while {doing}: {message} ({code})."
    text = f"{code} {message}"
    sentence = next((sentence for pattern, sentence in _REFUSALS if re.search(pattern, text)), other)
    return AwsError(sentence.format(doing=doing, message=answer, code=code), code)
