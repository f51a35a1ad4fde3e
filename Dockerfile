# The dashboard and the `saescope` command in a container, on the CPU. docker-compose.yml puts PostgreSQL beside it.
FROM python:3.13-slim

# Runs, models fetched from the hub and (without SAESCOPE_DATABASE_URL) the SQLite database live in one volume.
RUN useradd --uid 1000 --create-home saescope && install --directory --owner=saescope /data
ENV SAESCOPE_HOME=/data HF_HOME=/data/huggingface PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app

# PyTorch in a layer of its own, chosen by the same rule as on a newcomer's machine: the CPU build.
COPY .ci/setup .ci/
RUN --mount=type=cache,target=/root/.cache/pip sh .ci/setup torch

COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY app app
COPY sae_core sae_core
COPY templates templates
COPY static static
# Compiled here, because the user below may not write bytecode into /app at the first import. Some packages carry files
# for other Pythons, which do not compile and need not.
RUN --mount=type=cache,target=/root/.cache/pip sh .ci/setup app && \
    { python -m compileall -qq -j 0 .venv app sae_core || true; }

USER saescope
VOLUME /data
EXPOSE 8000
# At this address a token is needed: docs/operations.md.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["saescope", "serve", "--host", "0.0.0.0", "--port", "8000"]
