# docker build --file deploy/images/operator.Dockerfile --tag sextant-operator:0.1.0 .
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package sextant-operator

FROM docker.io/library/debian:bookworm-slim
# For https: the API server's own certificate authority comes with the pod.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/sextant-operator /usr/local/bin/
USER 10001:10001
ENTRYPOINT ["sextant-operator"]
CMD ["run"]
