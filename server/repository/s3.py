"""Archives in S3, through boto3 and only where it is installed (`pip install 'ringserve[s3]'`): `s3://bucket/key`, and the
signature that an https URL of S3 needs for an object encrypted with a key of KMS (`s3_sse_kms=true`).

Imported where it is used, in a thread: the import alone takes longer than the server may stand still.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

from ringserve.server.repository.allowed_urls import BadUrl, parse_s3
from ringserve.server.repository.incoming import CHUNK_BYTES, DownloadLimits, Incoming, SourceFailed
from ringserve.server.repository.threads import ThreadOfOne, in_daemon_thread

ATTEMPTS_MAX = 3
_ONE_WORD = re.compile(r"[\x21-\x7e]*")


def signed_headers(environ: Mapping[str, str], url: str) -> dict[str, str]:
    """The headers of a GET signed with AWS Signature Version 4. Raises `SourceFailed` when a variable is missing."""
    with _boto("s3_sse_kms"):
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    for name in names:
        if not environ.get(name):
            raise SourceFailed(f"s3_sse_kms needs the environment variable {name}")
    for name in (*names, "AWS_SESSION_TOKEN"):
        if not _ONE_WORD.fullmatch(
            environ.get(name, "")
        ):  # a header that cannot be sent would be told, secrets and all
            raise SourceFailed(f"s3_sse_kms: expected {name} without blanks, line ends and control characters")
    key_id, secret, region = (environ[name] for name in names)
    request = AWSRequest("GET", url)
    S3SigV4Auth(Credentials(key_id, secret, environ.get("AWS_SESSION_TOKEN")), "s3", region).add_auth(request)
    return {str(name): str(value) for name, value in request.headers.items()}


@contextlib.asynccontextmanager
async def open_s3(url: str, limits: DownloadLimits) -> AsyncIterator[Incoming]:
    """The object at `s3://bucket/key`. Raises `SourceFailed`, also while it is read. Credentials, region and endpoint are
    found as boto3 finds them."""
    try:
        bucket, key = parse_s3(url)
    except BadUrl as error:
        raise SourceFailed(str(error)) from None
    with _cause_named():
        answer = await in_daemon_thread(partial(_get_object, bucket, key, min(limits.stall_s, limits.total_s)))
        thread = ThreadOfOne(answer["Body"].close)
        try:
            announced = int(answer["ContentLength"])
            too_large = limits.too_large(announced)
            if too_large:
                raise SourceFailed(too_large)
            yield Incoming(announced, _chunks(thread, answer["Body"]))
        finally:
            thread.close()


def _get_object(bucket: str, key: str, stall_s: float) -> dict[str, Any]:
    with _boto("s3://"):
        import boto3
        from botocore.config import Config
    config = Config(
        signature_version="s3v4",  # what objects encrypted with KMS ask for
        connect_timeout=stall_s,
        read_timeout=stall_s,
        retries={"total_max_attempts": ATTEMPTS_MAX, "mode": "standard"},
    )
    # A session of our own: boto3's default one is not made for threads.
    client = boto3.session.Session().client("s3", config=config)
    answer: dict[str, Any] = client.get_object(Bucket=bucket, Key=key)
    return answer


async def _chunks(thread: ThreadOfOne, stream: Any) -> AsyncGenerator[bytes, None]:
    while chunk := await thread.use(partial(stream.read, CHUNK_BYTES)):
        yield chunk


@contextlib.contextmanager
def _boto(user: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SourceFailed(f"{user} needs the package boto3: pip install 'ringserve[s3]'") from error


@contextlib.contextmanager
def _cause_named() -> Iterator[None]:
    """boto's errors, told by the module that defines them: its classes are there only once it was imported."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("botocore.", "boto3.", "urllib3.")):
            raise
        answer = getattr(error, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            told = answer["Error"]
            raise SourceFailed(f"{told.get('Code', '')}: {told.get('Message', '')}"[:300]) from error
        raise SourceFailed(str(error)[:300]) from error
