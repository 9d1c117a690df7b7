"""An S3 server on this machine, for as long as a test needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def s3_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of what is in a folder, as the environment lets this process and its children read it."""
    s3fs = pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    import boto3

    s3fs.S3FileSystem.clear_instance_cache()  # one of an earlier test would go on asking its server
    running = moto_server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    for key, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        for path in folder.iterdir():
            client.upload_file(str(path), "models", f"tiny/{path.name}")
        yield "s3://models/tiny"
    finally:
        running.stop()
