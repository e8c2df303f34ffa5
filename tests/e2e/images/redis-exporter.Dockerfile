ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends prometheus-redis-exporter \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/*
USER 10001:10001
CMD ["prometheus-redis-exporter"]
