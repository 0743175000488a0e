# syntax=docker/dockerfile:1
# One image for every service of docker-compose.yml but PostgreSQL.
FROM python:3.11.14-slim-bookworm

# CPU wheels of torch by default (0.2 GB instead of 3). For CUDA: --build-arg TORCH_INDEX=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# libgl1 and libglib2.0-0: opencv-python (not headless) loads them.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 tini \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/wwts
COPY requirements.txt ./
# The CPU build of torch has no use for the CUDA libraries that requirements.txt pins for the other one.
RUN case "$TORCH_INDEX" in */cpu) sed -i -E '/^(nvidia-|cuda-|triton==)/d' requirements.txt ;; esac \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt

COPY pyproject.toml README.md ./
COPY plugins ./plugins
COPY training ./training
COPY eval ./eval
COPY dags ./dags
# Editable: Airflow then loads the plugin from the very files that `import wwts_ops` finds.
RUN pip install --no-cache-dir --no-deps --editable . \
    && useradd --uid 10001 --create-home --home-dir /home/wwts wwts \
    && install --directory --owner=wwts --group=wwts /data /mlflow /airflow

# Every tag says which commit made it; the image has no .git to ask.
ARG GIT_SHA=
ENV WWTS_GIT_SHA=$GIT_SHA

USER wwts
ENV AIRFLOW_HOME=/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/wwts/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/wwts/plugins \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1
# tini reaps what Airflow's task processes leave behind, and passes TERM on.
ENTRYPOINT ["tini", "--"]
CMD ["wwts", "--help"]
