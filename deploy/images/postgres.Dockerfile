# docker build --file deploy/images/postgres.Dockerfile --tag sextant-postgres:17 deploy/images
FROM docker.io/library/postgres:17-bookworm
# The image brings the package source of the PostgreSQL project, which has Patroni 4.
RUN apt-get update && apt-get install -y --no-install-recommends patroni && rm -rf /var/lib/apt/lists/*
# Patroni and Postgres look their user's name up.
RUN groupadd --gid 10001 sextant && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home sextant
USER 10001:10001
ENTRYPOINT []
CMD ["patroni", "/etc/patroni/patroni.yaml"]
