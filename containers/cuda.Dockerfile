# densegrpo_jax on NVIDIA GPUs. CUDA 13 comes with the Python packages; the host needs its driver and NVIDIA's
# container toolkit.
# From the repository's root:
#   docker build -f containers/cuda.Dockerfile -t densegrpo:cuda .
#   docker run --rm --gpus=all -v "$PWD/runs:/runs" densegrpo:cuda train --device=cuda --config=flux_ocr:devices=1 --workdir=/runs/flux_ocr
# This image was not built where the package was made; docs/containers.md says what was checked.
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/densegrpo
# The dependencies first: they stay when the code changes.
COPY requirements.txt requirements-cuda.txt ./
RUN pip install -r requirements-cuda.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY densegrpo_jax densegrpo_jax
RUN pip install --no-deps .
WORKDIR /runs
ENTRYPOINT ["densegrpo"]
CMD ["--help"]
