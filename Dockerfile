# The package with its tests, CPU wheels by default:
#   docker build -t megatron_prism .
#   docker run --rm -v "$PWD/runs:/opt/megatron_prism/runs" megatron_prism run shoebox
# For CUDA wheels: --build-arg PRISM_TORCH_ARGS= (and run with --gpus all).
ARG BASE=python:3.11-slim
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ gcc git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/megatron_prism
COPY . .

ARG PRISM_TORCH_ARGS="--torch-backend cpu"
RUN make .venv/.stamp PRISM_TORCH_ARGS="${PRISM_TORCH_ARGS}" && rm -rf /root/.cache

ENV PATH="/opt/megatron_prism/.venv/bin:${PATH}"
# Sees a torch that does not load, a GPU that was lost, and a full or read-only run folder.
HEALTHCHECK --interval=5m --timeout=60s --start-period=1m CMD ["prism", "doctor", "--health"]
ENTRYPOINT ["prism"]
CMD ["--help"]
