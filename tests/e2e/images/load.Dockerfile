ARG BASE
FROM ${BASE}
COPY e2e-load /usr/local/bin/
USER 10001:10001
CMD ["e2e-load"]
