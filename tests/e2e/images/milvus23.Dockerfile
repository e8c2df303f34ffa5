# Milvus 2.3.5, the real one, called as its released image is: `milvus run ROLE`.
ARG BASE
FROM ${BASE}
COPY milvus23/ /milvus/bin/
COPY milvus23.glog /milvus/configs/glog.conf
COPY milvus23.sh /usr/local/bin/milvus
RUN chmod 0755 /usr/local/bin/milvus
# What the released image's milvus.yaml says where the program's own defaults differ.
# It knows no setting for the first password of root, so it asks for none.
ENV COMMON_SECURITY_AUTHORIZATIONENABLED=false
ENV PATH=/usr/local/bin:/usr/bin:/bin LD_LIBRARY_PATH=/milvus/bin HOME=/tmp \
    ETCD_USE_EMBED=false LOCALSTORAGE_PATH=/var/lib/milvus/data/ MINIO_USEVIRTUALHOST=false \
    ROOTCOORD_PORT=53100 QUERYCOORD_PORT=19531 DATACOORD_PORT=13333 INDEXCOORD_PORT=31000 \
    QUERYNODE_PORT=21123 INDEXNODE_PORT=21121 DATANODE_PORT=21124
WORKDIR /milvus
USER 10001:10001
CMD ["milvus", "run", "standalone"]
