ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/ requirements/
# One environment builds, the other is what the image gets: it has neither pip nor build tools.
RUN python -m venv tools \
 && tools/bin/pip install --quiet --require-hashes -r requirements/build.txt \
 && python -m venv --without-pip /opt/last-sync \
 && tools/bin/pip --python /opt/last-sync/bin/python install --quiet --require-hashes \
    --only-binary :all: -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas/ schemas/
COPY worker/ worker/
RUN tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . \
 && tools/bin/pip --python /opt/last-sync/bin/python install --quiet --no-deps dist/*.whl
# What is in it, told by a tool that is not.
RUN python -m venv sbom \
 && sbom/bin/pip install --quiet --require-hashes -r requirements/sbom.txt \
 && sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
    --output-file /opt/last-sync/sbom.cdx.json /opt/last-sync/bin/python

FROM python:${PYTHON_VERSION}-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="last-sync worker" \
      org.opencontainers.image.description="Sync-finished events on Kafka become connector last-sync stats, or dead letters" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# The working directory is the one place to write: for SQLite, on a volume.
RUN python -m pip uninstall --quiet --yes --root-user-action=ignore pip \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/last-sync last-sync \
 && install -d -o last-sync -g last-sync /var/lib/last-sync
COPY --from=build /opt/last-sync /opt/last-sync
# What is imported was compiled by pip; the file system may be read-only.
ENV PATH=/opt/last-sync/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LAST_SYNC_HEALTH_HOST=0.0.0.0 \
    LAST_SYNC_HEALTH_PORT=8081
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/last-sync
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s --retries=3 \
  CMD ["last-sync", "check", "--live"]
ENTRYPOINT ["last-sync"]
CMD ["run"]
