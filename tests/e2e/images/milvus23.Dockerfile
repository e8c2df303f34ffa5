# Milvus 2.3.5, the real one, laid out as its released image is: /milvus/configs, `milvus run ROLE`.
ARG BASE
FROM ${BASE}
COPY milvus23/ /milvus/bin/
COPY milvus23.yaml /milvus/configs/milvus.yaml
COPY milvus23.glog /milvus/configs/glog.conf
ENV PATH=/milvus/bin:/usr/bin:/bin LD_LIBRARY_PATH=/milvus/bin MILVUSCONF=/milvus/configs HOME=/tmp
WORKDIR /milvus
USER 10001:10001
CMD ["milvus", "run", "standalone"]
