# Two images from one file:
#   docker build --target cpu -t megatron_prism:cpu .     # the package with its tests; no GPU
#   docker build --target gpu -t megatron_prism:gpu .     # NVIDIA's torch and Transformer Engine, kernels for hybrids
#   docker run --rm -v "$PWD/runs:/work/runs" --user "$(id -u):$(id -g)" megatron_prism:cpu prism run shoebox
# There is no ENTRYPOINT of ours, because nemo-run and Kubernetes start `bash` and `python` in the container.
ARG CPU_BASE=python:3.11-slim
# PyTorch 2.13, Python 3.12. A newer image brings other versions of torch, Transformer Engine and flash-attn.
ARG GPU_BASE=nvcr.io/nvidia/pytorch:26.06-py3

FROM ${CPU_BASE} AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ gcc git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/megatron_prism
COPY . .
# Where pip's index has torch for the CPU already: --build-arg PRISM_TORCH_ARGS=
ARG PRISM_TORCH_ARGS="--torch-backend cpu"
RUN make .venv/.stamp PRISM_TORCH_ARGS="${PRISM_TORCH_ARGS}" && rm -rf /root/.cache
ENV PATH="/opt/megatron_prism/.venv/bin:${PATH}"
# Any user can work here: clusters and --user bring their own.
RUN useradd --create-home --uid 10001 prism && mkdir -m 1777 /work && chmod 1777 /home/prism
ENV HOME=/home/prism
WORKDIR /work
USER 10001
# Sees a torch that does not load, a GPU that was lost, and a full or read-only run folder.
HEALTHCHECK --interval=5m --timeout=60s --start-period=1m CMD ["prism", "doctor", "--health"]
CMD ["prism", "--help"]

# Wheels of packages with CUDA code, compiled against the torch of the image: those on PyPI are for other builds of it.
FROM ${GPU_BASE} AS kernels
ARG CAUSAL_CONV1D=1.6.2.post1
ARG MAMBA_SSM=2.3.2.post1
# Apex has one kernel that is used: the sum of weight gradients inside the matrix product.
ARG APEX_COMMIT=6424da3b4faa6c8f062da4a48c424fff3f02d42d
# The image keeps pip to its own versions, which would refuse ours.
ENV PIP_CONSTRAINT="" MAX_JOBS=8 TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0"
RUN CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip wheel --no-cache-dir --no-deps --no-build-isolation \
    --no-binary causal-conv1d,mamba-ssm --wheel-dir /wheels \
    "causal-conv1d==${CAUSAL_CONV1D}" "mamba-ssm==${MAMBA_SSM}"
RUN APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels \
    "apex @ git+https://github.com/NVIDIA/apex@${APEX_COMMIT}"

FROM ${GPU_BASE} AS gpu
ARG UV=0.13.9
ENV PIP_CONSTRAINT="" VIRTUAL_ENV=/opt/venv PATH="/opt/venv/bin:${PATH}"
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "uv==${UV}" && uv venv --system-site-packages /opt/venv
WORKDIR /opt/megatron_prism
COPY constraints.txt ./
# constraints.txt is complete, so nothing is resolved and nothing can replace the image's torch and its Triton.
RUN --mount=type=bind,from=kernels,source=/wheels,target=/wheels \
    grep -v '^triton==' constraints.txt > /tmp/pins.txt \
    && uv pip install --no-cache --no-deps -r /tmp/pins.txt /wheels/*.whl
COPY . .
RUN uv pip install --no-cache --no-deps --no-build-isolation -e . && python -m compileall -qq megatron_prism
# Symbols that torch does not have show here, and not at the first step of a run.
RUN python -c "import torch, causal_conv1d_cuda, selective_scan_cuda, fused_weight_gradient_mlp_cuda" \
    && python -c "from importlib.util import find_spec as f; assert all(map(f, ('transformer_engine', 'flash_attn')))"
RUN useradd --create-home --uid 10001 prism && mkdir -m 1777 /work && chmod 1777 /home/prism
ENV HOME=/home/prism
WORKDIR /work
USER 10001
HEALTHCHECK --interval=5m --timeout=60s --start-period=1m CMD ["prism", "doctor", "--health"]
CMD ["prism", "--help"]
