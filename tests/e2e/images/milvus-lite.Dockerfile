# milvus-lite, called as Milvus is: `milvus run standalone`. Its wheels are for this Debian's Python.
ARG PYTHON_BASE
FROM ${PYTHON_BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3 libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/*
COPY milvus-lite/ /opt/wheels/
COPY milvus-lite.py /usr/local/bin/milvus
ENV PYTHONPATH=/opt/wheels PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 AWS_EC2_METADATA_DISABLED=true
RUN mkdir -p /milvus/configs && chmod 0755 /usr/local/bin/milvus
USER 10001:10001
CMD ["milvus", "run", "standalone"]
