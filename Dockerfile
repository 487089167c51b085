# syntax=docker/dockerfile:1
# docker build -t appliance . && docker run --init --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -v appliance:/data appliance
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS wheel
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The build backend comes from the lock too: no build isolation, which would fetch an unpinned one.
COPY requirements.lock ./
RUN pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md ./
COPY appliance appliance
COPY plugins plugins
RUN hatchling build --target wheel

FROM python:${PYTHON}-slim AS install
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY config config
RUN python -m venv /opt/appliance \
 && /opt/appliance/bin/pip install --require-hashes --requirement config/deploy/requirements.lock \
 && rm -r config/deploy
COPY --from=wheel /build/dist/*.whl ./
RUN /opt/appliance/bin/pip install --no-deps --no-index *.whl

FROM python:${PYTHON}-slim
# A user with a passwd entry: initdb of the embedded PostgreSQL asks for its name.
RUN groupadd --gid 10001 appliance \
 && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin appliance \
 && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=install /opt/appliance /opt/appliance
COPY --from=install /build/config /etc/appliance
ENV PATH=/opt/appliance/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    APPLIANCE_CONFIG_DIR=/etc/appliance \
    APPLIANCE_DATA_DIR=/data \
    APPLIANCE_HTTP__HOST=0.0.0.0
# The only place that is written to, besides /tmp: the root may be read-only.
VOLUME /data
WORKDIR /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["appliance", "doctor", "--quick"]
ENTRYPOINT ["appliance"]
CMD ["run"]
