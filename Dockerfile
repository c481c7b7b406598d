FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/promptq
WORKDIR /src
COPY requirements-worker.lock .
RUN /opt/promptq/bin/pip install --require-hashes -r requirements-worker.lock
COPY . .
RUN /opt/promptq/bin/pip install --no-deps --no-build-isolation . \
    && /opt/promptq/bin/pip uninstall --yes setuptools pip

FROM python:3.12-slim
RUN useradd --system --no-create-home --shell /usr/sbin/nologin promptq
COPY --from=build /opt/promptq /opt/promptq
ENV PATH=/opt/promptq/bin:$PATH PYTHONUNBUFFERED=1 PROMPTQ_LOG_FORMAT=json
USER promptq
STOPSIGNAL SIGTERM
ENTRYPOINT ["promptq"]
CMD ["worker"]
