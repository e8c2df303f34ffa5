# docker build --file deploy/images/server.Dockerfile --tag sextant-server:0.1.0 .
FROM docker.io/library/rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# libtorch is found again where it was when the server was built.
ENV XDG_CACHE_HOME=/opt CARGO_TARGET_DIR=/src/target
RUN make build \
    && mkdir -p /out/libtorch /out/model \
    && cp --recursive --dereference /opt/sextant/libtorch/lib /out/libtorch/ \
    && cp --recursive --dereference /opt/sextant/model/. /out/model/

FROM docker.io/library/debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libgomp1 libstdc++6 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/libtorch /opt/sextant/libtorch
COPY --from=build /out/model /models/default
COPY --from=build /src/target/release/sextant-server /usr/local/bin/
ENV SEXTANT_EMBEDDER__MODEL_DIR=/models/default
USER 10001:10001
ENTRYPOINT ["sextant-server"]
CMD ["serve"]
