# densegrpo_jax on a TPU VM. The container needs the host's devices and network.
# From the repository's root:
#   docker build -f containers/tpu.Dockerfile -t densegrpo:tpu .
#   docker run --rm --privileged --net=host -v "$PWD/runs:/runs" densegrpo:tpu train --device=tpu --config=flux_ocr:devices=4 --workdir=/runs/flux_ocr
# This image was not built where the package was made; docs/containers.md says what was checked.
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# libtpu writes every message of its own otherwise.
ENV TPU_STDERR_LOG_LEVEL=2
WORKDIR /opt/densegrpo
# The dependencies first: they stay when the code changes.
COPY requirements.txt requirements-tpu.txt ./
RUN pip install -r requirements-tpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY densegrpo_jax densegrpo_jax
RUN pip install --no-deps .
WORKDIR /runs
ENTRYPOINT ["densegrpo"]
CMD ["--help"]
