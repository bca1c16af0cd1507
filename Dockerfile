# syntax=docker/dockerfile:1
# The server alone: a run folder trained by the native engine is answered without torch and without what draws reports.
# WITH_TORCH=1 adds both, for runs of the torch engine and to train inside. docs/serving.md tells more.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The compiler is not part of what is served, so the distribution's current one will do.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/sasrec
ENV PATH=/opt/sasrec/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    | grep -v '^matplotlib' > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
ARG WITH_TORCH=0
RUN if [ "$WITH_TORCH" = 1 ]; then \
      pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch matplotlib; \
    fi
COPY CMakeLists.txt README.md LICENSE ./
COPY native native
COPY src src
RUN pip install --no-deps --constraint constraints.txt .

FROM python:${PYTHON}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin sasrec
COPY --from=build /opt/sasrec /opt/sasrec
ENV PATH=/opt/sasrec/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["sasrec", "serve"]
CMD ["/models/current", "--host", "0.0.0.0", "--port", "8000"]
