from tests.docker_engine import docker

__all__ = ["docker"]
