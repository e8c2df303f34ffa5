#!/usr/bin/env bash
# Images for the cluster of the tests, without a registry: made with buildah and imported into both
# nodes. Those of Sextant are made as anybody's are, by deploy/images/build.sh, on a base from
# Debian's packages. The others (tests/e2e/images) are of packages too and stand in for the released
# ones, under their names.
#
#   images.sh NAME…     makes these as far as they have changed, and imports them into a cluster that
#                       is up: pause server operator postgres redis milvus load; milvus23 etcd
#                       kafka s3 redis-exporter
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."
export CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sextant}
TARGET=${CARGO_TARGET_DIR:-$CACHE/target}
STORE=$CACHE/images
RUN=/run/sextant-cluster
IMAGES=$here/images
DEBIAN=docker.io/library/debian
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

export STORAGE_DRIVER=overlay BUILDAH_ISOLATION=chroot
BUILDAH="buildah --root $STORE/store --runroot /run/sextant-images"
# shellcheck disable=SC2086 # a program and its arguments
b() { $BUILDAH "$@" </dev/null; }

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# stamp FILE…: a word for what these files are; folders with all that they hold.
stamp() { find -L "$@" -type f -printf '%p %s %T@\n' | sort | cat - "$here/images.sh" | sha256sum | cut -c1-16; }

# base SUITE TAG: Debian without what it has for people to read.
base() {
    local tar=$STORE/$1.tar container mirror folder path excluded=()
    if b inspect --type image "$DEBIAN:$2" >/dev/null 2>&1; then return; fi
    mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
    for path in man locale doc info; do excluded+=("--dpkgopt=path-exclude=/usr/share/$path/*"); done
    mmdebstrap --quiet --variant=minbase --include=ca-certificates "${excluded[@]}" "$1" "$tar" ${mirror:+"$mirror"} >&2
    container=$(b from scratch)
    folder=$(b mount "$container")
    tar -C "$folder" --numeric-owner -xf "$tar"
    rm -rf "${folder:?}"/var/lib/apt/lists/* "${folder:?}"/var/cache/apt/*.bin "$tar"
    # As the official images: packages leave no cache behind.
    printf 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nAcquire::Languages "none";\n' \
        >"$folder/etc/apt/apt.conf.d/slim"
    b umount "$container" >/dev/null
    b config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    b commit --quiet --rm "$container" "$DEBIAN:$2" >/dev/null
}

# of_ours NAME TAG FILE…: an image of deploy/images, made when one of the files is another.
of_ours() {
    local name=$1 tag=$2 archive
    shift 2
    archive=$STORE/$name-$(stamp deploy/images/build.sh deploy/images/sbom.sh "deploy/images/$name" "$@").tar
    if [ ! -f "$archive" ]; then
        base trixie "$TAG"
        IMAGE_BUILDER=$BUILDAH deploy/images/build.sh "$name" >"$STORE/$name.log" 2>&1 </dev/null ||
            { tail -40 "$STORE/$name.log" >&2; die "The image of $name could not be built"; }
        archive "$name" "localhost/sextant-$name:$tag" "docker.io/library/sextant-$name:$tag" "$archive"
    fi
    import "$archive" "docker.io/library/sextant-$name:$tag"
}

# stand_in NAME REFERENCE [FILE…]: an image of tests/e2e/images; the files go into its context.
stand_in() {
    local name=$1 reference=$2 archive context=$STORE/context-$1
    shift 2
    archive=$STORE/$name-$(stamp "$IMAGES"/"$name".* "$@").tar
    if [ ! -f "$archive" ]; then
        base trixie "$TAG"
        if grep -q PYTHON_BASE "$IMAGES/$name.Dockerfile"; then base bookworm bookworm-slim; fi
        rm -rf "$context"
        mkdir -p "$context"
        cp "$IMAGES/$name".* "$context/"
        [ $# = 0 ] || cp --recursive --dereference "$@" "$context/"
        b build --build-arg "BASE=$DEBIAN:$TAG" --build-arg "PYTHON_BASE=$DEBIAN:bookworm-slim" \
            --file "$context/$name.Dockerfile" --tag "localhost/$name" "$context" >"$STORE/$name.log" 2>&1 ||
            { tail -40 "$STORE/$name.log" >&2; die "The image of $name could not be built"; }
        rm -rf "$context"
        archive "$name" "localhost/$name" "$reference" "$archive"
    fi
    import "$archive" "$reference"
}

# archive NAME IMAGE REFERENCE FILE: writes the image; earlier archives of it go.
archive() {
    rm -f "$STORE/$1"-????????????????.tar
    b push --quiet --format oci "$2" "oci-archive:$4.part:$3"
    mv "$4.part" "$4"
    # The layers of the base are shared; those of earlier images are of no use any more.
    b rmi --prune >/dev/null 2>&1 || true
}

import() {
    if [ -d "$RUN" ]; then "$here/cluster.sh" load "$1" "$2"; fi
}

pause() {
    local container archive
    archive=$STORE/pause-$(stamp "$IMAGES/pause.c").tar
    if [ ! -f "$archive" ]; then
        "${CC:-cc}" -Os -static -s -o "$STORE/pause" "$IMAGES/pause.c"
        container=$(b from scratch)
        b copy --quiet "$container" "$STORE/pause" /pause >/dev/null
        b config --entrypoint '["/pause"]' --user 65535:65535 "$container"
        b commit --quiet --rm "$container" localhost/pause:1 >/dev/null
        archive pause localhost/pause:1 localhost/pause:1 "$archive"
    fi
    import "$archive" localhost/pause:1
}

TAG=$(sed -n 's/^ARG BASE=.*://p' deploy/images/server/Dockerfile)
mkdir -p "$STORE"
# One at a time: they share the store.
exec 9>"$STORE/lock"
flock 9
for name; do
    case $name in
    pause) pause ;;
    server) of_ours server "$VERSION" "$TARGET/release/sextant-server" "$CACHE/libtorch/lib/libtorch_cpu.so" "$CACHE/model" ;;
    operator) of_ours operator "$VERSION" "$TARGET/release/sextant-operator" ;;
    postgres) of_ours postgres "$(sed -n 's/^ARG MAJOR=//p' deploy/images/postgres/Dockerfile)" ;;
    redis) stand_in redis docker.io/library/redis:7.4 ;;
    redis-exporter) stand_in redis-exporter docker.io/oliver006/redis_exporter:v1.91.1 ;;
    milvus) stand_in milvus-lite docker.io/milvusdb/milvus:v2.6.15 "$CACHE/milvus-lite" ;;
    milvus23) stand_in milvus23 docker.io/milvusdb/milvus:v2.3.5 "$CACHE/milvus23" ;;
    etcd) stand_in etcd quay.io/coreos/etcd:v3.5.25 ;;
    kafka) stand_in kafka localhost/kafka:1 "$CACHE/kafka" ;;
    s3) stand_in s3 localhost/s3:1 "$CACHE/bin/versitygw" ;;
    load) stand_in load localhost/load:1 "$TARGET/release/e2e-load" ;;
    *) die "There is no image $name" ;;
    esac
done
