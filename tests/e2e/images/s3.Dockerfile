# An S3 server over two folders: objects, and what is known of them.
ARG BASE
FROM ${BASE}
COPY versitygw /usr/local/bin/
USER 10001:10001
CMD ["sh", "-c", "mkdir -p /data/objects /data/meta && exec versitygw --quiet --port :9000 posix --sidecar /data/meta /data/objects"]
