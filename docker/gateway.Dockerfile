# The gateway on processors, and the one in front of Triton. No torch.
#   docker build --file docker/gateway.Dockerfile --tag foveal/gateway .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# `cpu,openvino,traces,triton` adds an engine that is faster on many processors, and 200 MB.
ARG EXTRAS=cpu,traces,triton
ENV PIP_CONSTRAINT=/source/constraints.txt \
    PIP_BUILD_CONSTRAINT=/source/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN apt-get update && apt-get install -y --no-install-recommends binutils
RUN python3 -m venv --without-pip /opt/foveal
# Without the code, the layer of dependencies is kept while the code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service/__init__.py service/
RUN python3 -m pip --python /opt/foveal/bin/python install ".[${EXTRAS}]"
# 90 MB less: tests, ONNX Runtime a second time for C, symbols for debuggers. Libraries that their
# wheels have patched are left alone: strip breaks them.
RUN site=$(/opt/foveal/bin/python -c 'import site; print(site.getsitepackages()[0])') \
    && find "$site" -type d -name tests -prune -exec rm -r {} + \
    && rm -f "$site"/onnxruntime/capi/libonnxruntime.so.* \
    && find "$site"/ml_dtypes "$site"/rapidjson.* "$site"/uvloop "$site"/yaml -name '*.so' \
        -exec strip {} +
COPY service service
RUN python3 -m pip --python /opt/foveal/bin/python install --no-deps --force-reinstall .

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Foveal gateway" \
      org.opencontainers.image.description="Embeddings, attention maps and nearest neighbours over HTTP." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=build /opt/foveal /opt/foveal
RUN install -d -o 10001 -g 10001 /data
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
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["foveal"]
CMD ["serve"]
