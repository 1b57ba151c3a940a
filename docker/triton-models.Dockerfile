# A model repository for Triton, to be copied out of: `cp -r /models/. /repository`.
#   docker build --file docker/triton-models.Dockerfile --tag foveal/triton-models .
# Another model: put its bundle below bundles/ in the checkout, and --build-arg BUNDLES=bundles
ARG BASE=python:3.11-slim-bookworm
ARG FINAL=busybox:1.37

FROM ${BASE} AS build
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_BUILD_CONSTRAINT=/source/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python3 -m venv --without-pip /opt/foveal && mkdir /repository
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service/__init__.py service/
RUN python3 -m pip --python /opt/foveal/bin/python install ".[cpu]" onnx
COPY service service
COPY training training
# Not by `foveal-train export --triton`, which asks for torch: a repository needs none.
ARG BUNDLES=service/bundles
COPY ${BUNDLES} /bundles
ENV PYTHONPATH=/source ORT_DISABLE_TELEMETRY=1
RUN ["/opt/foveal/bin/python", "-c", "from pathlib import Path; from service.bundle import Bundle; from training.export.triton import write_repository; [write_repository(Bundle.load(path), Path('/models')) for path in sorted(Path('/bundles').iterdir()) if path.is_dir()]"]

FROM ${FINAL}
ARG FINAL
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Foveal's models for Triton" \
      org.opencontainers.image.description="A model repository for NVIDIA's Triton Inference Server." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${FINAL}"
COPY --from=build /models /models
# A volume that is mounted here belongs to the user who copies.
COPY --from=build --chown=10001:10001 /repository /repository
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
CMD ["ls", "/models"]
