# The gateway that runs models on an NVIDIA GPU itself, by CUDA. No torch.
#   docker build --file docker/gateway-gpu.Dockerfile --tag foveal/gateway-gpu .
#   docker run --gpus all --publish 127.0.0.1:8000:8000 foveal/gateway-gpu
# onnxruntime-gpu as locked wants CUDA 13 and cuDNN 9.
ARG BASE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${BASE} AS build
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_BUILD_CONSTRAINT=/source/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip python3-venv
WORKDIR /source
RUN python3 -m venv --without-pip /opt/foveal
# Without the code, the layer of dependencies is kept while the code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service/__init__.py service/
RUN python3 -m pip --python /opt/foveal/bin/python install ".[gpu,traces]"
COPY service service
RUN python3 -m pip --python /opt/foveal/bin/python install --no-deps --force-reinstall .

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Foveal gateway for NVIDIA GPUs" \
      org.opencontainers.image.description="Embeddings, attention maps and nearest neighbours over HTTP." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/foveal /opt/foveal
ENV PATH=/opt/foveal/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FOVEAL_HOST=0.0.0.0 \
    FOVEAL_DATA=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# CUDA and many batch sizes to prepare: longer than on a processor.
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["foveal"]
CMD ["serve"]
