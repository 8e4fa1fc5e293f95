"""Objects of a local S3 server (moto), one of them encrypted with a key of KMS; and GETs whose signature it checks."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from ringserve.protocol.errors import DownloadFailed, ModelNotFound
from ringserve.server.repository.incoming import DownloadLimits, SourceFailed
from ringserve.server.repository.remote import Fetched, RemoteSources
from ringserve.server.repository.s3 import signed_headers
from tests.server.repository.file_server import FileServer, answer, redirect

BODY = os.urandom(100_000)
LIMITS = DownloadLimits(bytes_max=1_000_000, total_s=30, stall_s=10)
ANY = ("s3://models/.*", "http://.*")
REGION = "eu-central-1"
POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
KEY_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server with the bucket `models`: `x.mar`, and `deep/kms.mar` encrypted with a key of its KMS."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    common = {"endpoint_url": url, "region_name": REGION, "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    s3, kms = boto3.client("s3", **common), boto3.client("kms", **common)
    s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="models", Key="x.mar", Body=BODY)
    encrypted: dict[str, Any] = {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": kms.create_key()["KeyMetadata"]["KeyId"],
    }
    s3.put_object(Bucket="models", Key="deep/kms.mar", Body=BODY, **encrypted)
    assert s3.head_object(Bucket="models", Key="deep/kms.mar")["ServerSideEncryption"] == "aws:kms"
    yield url
    server.stop()


@pytest.fixture(autouse=True)
def environment(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this server only: no configuration of whoever runs the test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name, value in zip(KEY_NAMES, ("AKIDEXAMPLE", "5ecret", REGION), strict=True):
        monkeypatch.setenv(name, value)


def fetch(
    url: str, store: Path, patterns: tuple[str, ...] = ANY, limits: DownloadLimits = LIMITS, **more: Any
) -> Fetched:
    return asyncio.run(RemoteSources(patterns, limits).fetch(url, store, **more))


def failure(url: str, store: Path, **more: Any) -> str:
    with pytest.raises(DownloadFailed) as caught:
        fetch(url, store, **more)
    assert list(store.iterdir()) == []
    start = f"Failed to download archive from: {url} ("
    assert caught.value.message.startswith(start)
    assert "5ecret" not in caught.value.message
    return caught.value.message.removeprefix(start).removesuffix(")")


# ---- s3://


@pytest.mark.parametrize("key", ["x.mar", "deep/kms.mar"])
def test_an_object_arrives_whole(store: Path, key: str) -> None:
    fetched = fetch(f"s3://models/{key}", store)
    assert fetched == Fetched(store / key.rpartition("/")[2], f"s3://models/{key}", remote=True, downloaded=True)
    assert fetched.path.read_bytes() == BODY


def test_a_bucket_that_is_not_allowed_is_refused(store: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"^Given URL s3://other/x\.mar does not match any allowed URL\(s\)$"):
        fetch("s3://other/x.mar", store)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("s3://models/gone.mar", "NoSuchKey: The specified key does not exist."),
        ("s3://gone/x.mar", "NoSuchBucket: The specified bucket does not exist"),
    ],
)
def test_what_is_not_there_says_so(store: Path, url: str, cause: str) -> None:
    assert failure(url, store, patterns=("s3://.*",)) == cause


def test_an_object_too_large_is_not_read(store: Path) -> None:
    cause = failure("s3://models/x.mar", store, limits=DownloadLimits(bytes_max=99_999))
    assert cause == "100,000 bytes, and max_model_download_bytes is 99,999"


def test_no_credentials_say_so(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert failure("s3://models/x.mar", store) == "Unable to locate credentials"


def test_an_endpoint_that_hangs_ends_with_the_whole_time(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as source:
        source.acts["/models/x.mar"] = source.hang(b"start")
        monkeypatch.setenv("AWS_ENDPOINT_URL", source.url)
        cause = failure("s3://models/x.mar", store, limits=DownloadLimits(total_s=0.5, stall_s=10))
    assert cause == "not complete after model_download_timeout, 0.5 s"


def test_an_object_cut_short_says_so(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as source:
        source.acts["/models/x.mar"] = answer(200, b"short", length=10)
        monkeypatch.setenv("AWS_ENDPOINT_URL", source.url)
        assert failure("s3://models/x.mar", store) == "5 read, but total bytes expected is 10."


def test_without_boto3_the_sentence_names_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("boto3", "botocore.auth"):
        monkeypatch.setitem(sys.modules, name, None)
    assert failure("s3://models/x.mar", store) == "s3:// needs the package boto3: pip install 'ringserve[s3]'"
    cause = failure("http://127.0.0.1:1/x.mar", store, s3_sse_kms=True)
    assert cause == "s3_sse_kms needs the package boto3: pip install 'ringserve[s3]'"


# ---- s3_sse_kms with http(s)


@pytest.fixture
def checked(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server from now on refuses what is not signed by a key of its own, which is in the environment."""
    common = {"endpoint_url": endpoint, "region_name": REGION, "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    iam = boto3.client("iam", **common)
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=POLICY)
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
    httpx.post(f"{endpoint}/moto-api/reset-auth", content="0", trust_env=False).raise_for_status()
    yield endpoint
    httpx.post(f"{endpoint}/moto-api/reset-auth", content="inf", trust_env=False).raise_for_status()
    iam.delete_access_key(UserName="reader", AccessKeyId=made["AccessKeyId"])
    iam.delete_user_policy(UserName="reader", PolicyName="read")
    iam.delete_user(UserName="reader")


def test_a_signed_get_of_an_encrypted_object_is_accepted(
    checked: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{checked}/models/deep/kms.mar"
    assert fetch(url, store, s3_sse_kms=True).path.read_bytes() == BODY
    (store / "kms.mar").unlink()
    assert failure(url, store).startswith("status 403")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "5ecret")
    assert failure(url, store, s3_sse_kms=True).startswith("status 403")


def test_the_signature_goes_to_the_first_server_alone(store: Path) -> None:
    with FileServer() as first, FileServer() as second:
        first.acts["/x.mar"] = redirect("/again/x.mar")
        first.acts["/again/x.mar"] = redirect(f"{second.url}/x.mar")
        second.acts["/x.mar"] = answer(200, BODY)
        named = tuple(f"{each.url}/.*" for each in (first, second))
        fetch(f"{first.url}/x.mar", store, named, s3_sse_kms=True)
    signatures = [headers.get("Authorization", "none") for _, headers in (*first.requests, *second.requests)]
    assert [each.partition(" ")[0] for each in signatures] == ["AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256", "none"]
    assert "Credential=AKIDEXAMPLE/" in signatures[0]
    assert f"/{REGION}/s3/aws4_request" in signatures[0]
    assert signatures[0] != signatures[1]


@pytest.mark.parametrize("name", KEY_NAMES)
def test_a_missing_variable_is_named(store: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name)
    cause = failure("http://127.0.0.1:1/x.mar", store, s3_sse_kms=True)
    assert cause == f"s3_sse_kms needs the environment variable {name}"


@pytest.mark.parametrize("name", [*KEY_NAMES, "AWS_SESSION_TOKEN"])
def test_a_secret_with_a_line_end_is_refused_by_name_and_not_told(
    source: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As files of secrets end; the library for HTTP would tell the whole header that it cannot send."""
    monkeypatch.setenv(name, "5ecret\n")
    cause = failure(f"{source.url}/x.mar", store, s3_sse_kms=True)
    assert cause == f"s3_sse_kms: expected {name} without blanks, line ends and control characters"


def test_a_session_token_is_sent_along() -> None:
    environ = dict(zip(KEY_NAMES, ("id", "5ecret", REGION), strict=True))
    headers = signed_headers({**environ, "AWS_SESSION_TOKEN": "token"}, "https://models.s3.amazonaws.com/x.mar")
    assert headers["X-Amz-Security-Token"] == "token"
    assert "X-Amz-Security-Token" not in signed_headers(environ, "https://models.s3.amazonaws.com/x.mar")
    with pytest.raises(SourceFailed):
        signed_headers({**environ, "AWS_DEFAULT_REGION": ""}, "https://models.s3.amazonaws.com/x.mar")
