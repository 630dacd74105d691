# bertbench on NVIDIA GPUs: torch's own CUDA build, and a compiler for Triton and the CPU kernels.
# From the checkout's folder:
#   docker build -f scripts/docker/nvidia.Dockerfile -t bertbench:nvidia .
#   docker run --rm --gpus all --ipc host -v "$PWD/results:/results" bertbench:nvidia
FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /bertbench
COPY . .
# Settings of pip, for example the index of another CUDA version: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN PIP_NO_CACHE_DIR=1 bash init.sh
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV OUTPUT=/results SCRIPT=train_bert_pretraining_amp_dist.sh FLAGS="--recipe mini"
CMD ["bash", "scripts/kubernetes/run.sh"]
