"""What AWS's errors mean, in one sentence with the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dogbreed.core.errors import DogbreedError

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken")
_UNKNOWN_KEY = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")
_BUSY = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown")
_NO_CAPACITY = ("InsufficientCapacity", "CapacityError", "InsufficientInstanceCapacity")


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
    """Turns what botocore raises into a sentence.

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
    """The sentence for an error of botocore's or boto3's.

    Args:
        error: To explain.
        doing: What was going on.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        code = str(response["Error"].get("Code", ""))
        message = " ".join(str(response["Error"].get("Message", "")).split())
        return AwsError(_refused(code, message, doing, response), code)
    inner = error.__cause__ or error.__context__
    if type(error).__module__.startswith("boto3") and isinstance(inner, Exception):
        return translated(inner, doing)
    return AwsError(_unreachable(error, doing), type(error).__name__)


def _refused(code: str, message: str, doing: str, response: dict[str, Any]) -> str:
    said = f"AWS says {message or code!r}"
    if code in _EXPIRED:
        return f"The AWS credentials have expired while {doing}; renew them (aws sso login, or a new session token)."
    if code in _UNKNOWN_KEY:
        return f"AWS does not know these credentials ({code}); check AWS_PROFILE, or aws configure."
    if code in ("ResourceLimitExceeded", "ServiceQuotaExceededException", "LimitExceededException"):
        return (
            f"The account's quota does not allow this: {said}. Ask for more under Service Quotas, SageMaker, or use "
            "another sagemaker.instance_type, or a smaller search.parallel."
        )
    if any(word in code or word in message for word in _NO_CAPACITY):
        return f"AWS has no machine of this type to spare now: {said}. Try later, another instance type or region."
    if code in ("ResourceInUse", "ConflictException") or "already exists" in message:
        return f"The name is taken while {doing}: {said}. Give another sagemaker.job_name, or leave it out."
    if code in _BUSY:
        return f"AWS asks to slow down while {doing}, and did so after every retry; try again in a few minutes."
    if re.search(r"assume.*role|RoleArn|role.*(invalid|does not exist|not exist)", message, re.IGNORECASE):
        return (
            f"SageMaker cannot use the execution role: {said}. Check sagemaker.role and its trust policy "
            "(python launch/policies.py trust)."
        )
    if code in _DENIED and "iam:PassRole" in message:
        return (
            f"You may not hand this role to SageMaker: {said}. Your user needs iam:PassRole for it "
            "(python launch/policies.py train)."
        )
    if code in _DENIED:
        return f"The credentials may not do this while {doing}: {said}. python launch/policies.py shows what is needed."
    if code in ("NoSuchBucket",):
        return f"The bucket does not exist while {doing}: {said}. Create it, or give another sagemaker.bucket."
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "301"):
        return f"The bucket is in another region while {doing}: {said}. Give sagemaker.region, or another bucket."
    if code in ("ResourceNotFound", "404", "NoSuchKey") or "could not find" in message.lower():
        return f"There is no such thing in this account and region while {doing}: {said}."
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500:
        return f"AWS failed while {doing}, after every retry: {said}. Try again in a few minutes."
    return f"AWS refused while {doing}: {said} ({code})."


def _unreachable(error: Exception, doing: str) -> str:
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return (
            "There are no AWS credentials; give them with aws configure, aws sso login, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY. mode=plan needs none."
        )
    if "Token" in name or "SSO" in name:
        return f"The AWS credentials have expired while {doing}; renew them (aws sso login, or a new session token)."
    if name == "NoRegionError":
        return "No AWS region is set; give sagemaker.region=us-east-1 (or another), or AWS_DEFAULT_REGION."
    if name == "ProfileNotFound":
        return f"{error}; check AWS_PROFILE, or aws configure list-profiles."
    if "Timeout" in name or "Connection" in name or "Endpoint" in name or "Proxy" in name:
        return (
            f"AWS could not be reached while {doing} ({' '.join(str(error).split())}); check the network, and run the "
            "same command again: what is there already is not sent twice."
        )
    return f"AWS's client failed while {doing}: {' '.join(str(error).split())}."
