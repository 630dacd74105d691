# bertbench on processors. From the checkout's folder:
#   docker build -f scripts/docker/cpu.Dockerfile -t bertbench:cpu .
#   docker run --rm -v "$PWD/results:/results" bertbench:cpu
FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /bertbench
COPY . .
# Settings of pip, for example another index: --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN PIP_NO_CACHE_DIR=1 bash init.sh --backend cpu_ref
ENV OUTPUT=/results SCRIPT=train_bert_pretraining_amp_dist.sh FLAGS="--recipe mini --backend cpu_ref"
CMD ["bash", "scripts/kubernetes/run.sh"]
