"""The photographs on their way to S3."""

import base64
import hashlib
from pathlib import Path

import boto3
import pytest
from support.cloud import ACCOUNT, Cloud

from launch.aws.storage import Bucket

pytestmark = pytest.mark.slow


@pytest.fixture
def root(write_tree, tmp_path) -> Path:
    root = write_tree(tmp_path / "dogs", counts={"train": 2, "valid": 1, "test": 1})
    (root / "train" / "001.Amber_hound" / ".DS_Store").write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    return root


def stored(bucket: str) -> dict[str, bytes]:
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in found}


def puts(cloud: Cloud) -> list[str]:
    return [name.partition("/dogbreed/")[2] for name, _, _ in cloud.requests if name.startswith("PUT /mine/dogbreed")]


def test_what_is_sent_and_what_is_not(cloud, run, root):
    boto3.client("s3").create_bucket(Bucket="mine")
    words = ("sagemaker.bucket=mine", f"data.root={root}")
    plan = run("upload", "mode=plan", *words)
    assert "16 files" in plan.out
    assert "s3://mine/dogbreed/data/dogs/" in plan.out
    assert stored("mine") == {}

    assert run("upload", *words).code == 0
    expected = {
        f"dogbreed/data/dogs/{file.relative_to(root)}": file.read_bytes()
        for file in root.rglob("*.jpg")
        if file.is_file()
    }
    assert stored("mine") == expected
    for key in expected:
        head = boto3.client("s3").head_object(Bucket="mine", Key=key, ChecksumMode="ENABLED")
        assert base64.b64decode(head["ChecksumSHA256"]) == hashlib.sha256(expected[key]).digest()
    sent = [headers for name, _, headers in cloud.requests if name.startswith("PUT /mine/dogbreed")]
    assert {headers["X-Amz-Expected-Bucket-Owner"] for headers in sent} == {ACCOUNT}
    names = {name.lower() for headers in sent for name in headers}
    assert not names & {"x-amz-acl", "x-amz-server-side-encryption"}, "the bucket's own encryption holds"


def test_a_folder_in_another_layout_is_sent_as_it_is(run, root):
    (root / "test").rename(root / "more")
    words = ("mode=plan", "sagemaker.bucket=mine", f"data.root={root}")
    refused = run("upload", *words)
    assert "has no folder test/" in refused.err
    assert "sagemaker.channels=root, which takes the folder as it is" in refused.err
    assert "16 files" in run("upload", *words, "sagemaker.channels=root").out


def test_only_what_changed_is_sent_again(cloud, run, root):
    boto3.client("s3").create_bucket(Bucket="mine")
    words = ("sagemaker.bucket=mine", f"data.root={root}")
    assert run("upload", *words).code == 0
    cloud.requests.clear()
    assert "16 were there already" in run("upload", *words).out
    assert puts(cloud) == []

    changed, gone = sorted(root.rglob("*.jpg"))[:2]
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x00")  # of the same size
    gone.unlink()
    said = run("upload", *words)
    assert puts(cloud) == [f"data/dogs/{changed.relative_to(root)}"]
    assert f"1 file there, but not here, such as s3://mine/dogbreed/data/dogs/{gone.relative_to(root)}" in said.out
    assert stored("mine")[f"dogbreed/data/dogs/{changed.relative_to(root)}"] == changed.read_bytes()


def test_with_a_key_of_ones_own_the_digest_decides(cloud, run, root):
    """Where S3 encrypts with KMS, an ETag is no MD5."""
    boto3.client("s3").create_bucket(Bucket="mine")
    words = ("sagemaker.bucket=mine", f"data.root={root}", "sagemaker.kms_key=alias/dogs")
    assert run("upload", *words).code == 0
    key = next(iter(stored("mine")))
    head = boto3.client("s3").head_object(Bucket="mine", Key=key)
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/dogs")
    cloud.requests.clear()
    assert "16 were there already" in run("upload", *words).out


def test_a_large_file_goes_in_parts_and_is_known_again(cloud, tmp_path):
    client = boto3.client("s3")
    client.create_bucket(Bucket="mine")
    file = tmp_path / "weights.pth"
    file.write_bytes(bytes(range(256)) * (1 << 16))  # 16 MiB
    bucket = Bucket(client, "mine", ACCOUNT, "us-east-1")
    assert bucket.send({"w/weights.pth": file}, quiet=True).files == 1
    head = client.head_object(Bucket="mine", Key="w/weights.pth")
    assert head["ETag"].endswith('-2"')
    assert bucket.send({"w/weights.pth": file}, quiet=True).kept == 1
    assert "Uploads" not in client.list_multipart_uploads(Bucket="mine")


def test_a_large_file_that_breaks_off_leaves_nothing(cloud, tmp_path, monkeypatch):
    from botocore.config import Config

    client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    client.create_bucket(Bucket="mine")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"w" * (40 << 20))
    cloud.breaks_after = 2
    with pytest.raises(Exception, match="AWS could not be reached while sending files to S3"):
        Bucket(client, "mine", ACCOUNT, "us-east-1").send({"w/weights.pth": file}, quiet=True)
    assert stored("mine") == {}
    assert "Uploads" not in client.list_multipart_uploads(Bucket="mine")


def test_the_default_bucket_is_made_private(cloud, run, root):
    assert run("upload", f"data.root={root}", "sagemaker.region=eu-central-1").code == 0
    client, name = boto3.client("s3"), f"sagemaker-eu-central-1-{ACCOUNT}"
    assert client.get_bucket_location(Bucket=name)["LocationConstraint"] == "eu-central-1"
    blocked = client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert set(blocked.values()) == {True}


def test_code_is_stored_once(cloud):
    client = boto3.client("s3")
    client.create_bucket(Bucket="mine")
    bucket = Bucket(client, "mine", ACCOUNT, "us-east-1")
    assert bucket.put("code/a.tar.gz", b"one")
    assert not bucket.put("code/a.tar.gz", b"one")
    assert bucket.put("code/a.tar.gz", b"two")
