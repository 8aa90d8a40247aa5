# The image of Prefect's server and of the workers. For the CPU:  docker build --build-arg TORCH_INDEX=...
# (PyTorch's own index of CPU builds: the usual index has the CUDA build, which is the other variant.)
FROM python:3.11.13-slim-bookworm AS build

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
# torch goes first: it is the largest layer, and changes seldom.
COPY constraints.txt .
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md ./
COPY polyepo polyepo
COPY storage storage
COPY tasks tasks
COPY flows flows
RUN pip install -c constraints.txt '.[pipeline]'

FROM python:3.11.13-slim-bookworm

RUN useradd --uid 10001 --create-home polyepo \
    && install -d -o polyepo -g polyepo /app /app/.polyepo /weights /home/polyepo/.cache/huggingface
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
# The deployments of prefect.yaml name flows by their files.
COPY --chown=polyepo:polyepo prefect.yaml prefect.toml ./
COPY --chown=polyepo:polyepo flows flows
COPY --chown=polyepo:polyepo configs configs
USER 10001
CMD ["polyepo", "--help"]
