"""A cluster of others is joined with permission, by token, and by its address."""

import pytest

from dfl_unlearn.engine.backends import ray_runtime
from dfl_unlearn.engine.backends.ray_runtime import ray_session
from dfl_unlearn.engine.config import ExecutionConfig
from dfl_unlearn.errors import InsecureRayError, InvalidArgumentError, ResourceError


def join(address="127.0.0.1:1", *, allow=True):
    with ray_session(1, address=address, allow_remote=allow):
        pass


def test_a_cluster_is_joined_with_permission_only():
    with pytest.raises(InsecureRayError, match="every machine in that cluster can run"):
        join(allow=False)


def test_a_cluster_is_joined_with_a_token_only(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(InsecureRayError, match=r"needs token mode, got .*=disabled"):
        join()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InsecureRayError, match="and no token"):
        join()


def test_nobody_at_the_address_is_said(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    monkeypatch.setattr(ray_runtime, "_initialized", lambda ray: False)
    with pytest.raises(ResourceError, match=r"no Ray head answers at 127.0.0.1:1"):
        join()


@pytest.mark.parametrize(
    "address", ["auto", "ray://h:1", "h", "h:x", "h:1/..", "", "a b:1"]
)
def test_an_address_is_host_and_port(address):
    with pytest.raises(InvalidArgumentError, match="ray_address: must be host:port"):
        ExecutionConfig(engine="ray", ray_address=address)
    for good in ("127.0.0.1:6379", "[::1]:6379", "head.example:1"):
        ExecutionConfig(engine="ray", ray_address=good)


def test_the_new_execution_settings_are_checked():
    with pytest.raises(InvalidArgumentError, match="ray_address: must be None with"):
        ExecutionConfig(ray_address="127.0.0.1:6379")
    with pytest.raises(InvalidArgumentError, match="stall_timeout_s: must be"):
        ExecutionConfig(stall_timeout_s=0)
