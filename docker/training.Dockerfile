# Training, evaluation and export: `foveal-train`, and `torchrun` for several processes.
#   docker build --file docker/training.Dockerfile --tag foveal/training .
#   docker run --gpus all --shm-size 8g --volume PHOTOS:/images:ro --volume runs:/foveal/runs \
#       foveal/training run dino-vits16 data=/images/train
# torch brings CUDA along; for processors alone build with an index of CPU builds:
#   --build-arg INDEX=ADDRESS
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG INDEX=
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_BUILD_CONSTRAINT=/source/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=${INDEX} \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python3 -m venv --without-pip /opt/foveal
# Without the code, the layer of dependencies is kept while the code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service/__init__.py service/
RUN python3 -m pip --python /opt/foveal/bin/python install ".[cpu,training]"
COPY service service
COPY training training
RUN python3 -m pip --python /opt/foveal/bin/python install --no-deps --force-reinstall .

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Foveal training" \
      org.opencontainers.image.description="Trains, evaluates and exports self-supervised vision models." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
# torch compiles with them when a recipe says `compile=true`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/foveal /opt/foveal
RUN install -d -o 10001 -g 10001 /foveal /foveal/runs
# torch and matplotlib keep files at home, which is otherwise read-only; torch asks for a name.
ENV PATH=/opt/foveal/bin:$PATH \
    HOME=/tmp \
    USER=foveal \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /foveal
USER 10001:10001
VOLUME /foveal/runs
# Ends the run after its step, with a checkpoint.
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
ENTRYPOINT ["foveal-train"]
CMD ["--help"]
