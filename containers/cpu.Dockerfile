# densegrpo_jax on a CPU.
# From the repository's root:
#   docker build -f containers/cpu.Dockerfile -t densegrpo:cpu .
#   docker run --rm -v "$PWD/runs:/runs" densegrpo:cpu train --config=tiny_ocr --workdir=/runs/tiny_ocr
# This image was not built where the package was made; docs/containers.md says what was checked.
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# Large pages: see launch/demo.sh.
ENV GLIBC_TUNABLES=glibc.malloc.hugetlb=1
WORKDIR /opt/densegrpo
# The dependencies first: they stay when the code changes.
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY densegrpo_jax densegrpo_jax
RUN pip install --no-deps .
WORKDIR /runs
ENTRYPOINT ["densegrpo"]
CMD ["--help"]
