#!/bin/sh
# This Milvus reads milvus.yaml and not, as later ones, user.yaml beside it, which is the operator's.
set -eu
# A container that is started again finds what the last one copied.
rm -rf /tmp/configs
mkdir -p /tmp/configs
cp /milvus/configs/user.yaml /tmp/configs/milvus.yaml
cp /milvus/configs/glog.conf /tmp/configs/
MILVUSCONF=/tmp/configs exec /milvus/bin/milvus "$@"
