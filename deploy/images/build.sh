#!/usr/bin/env bash
# Builds images from the programs that `make build` has built on this machine, so they run on a base
# that is as new as it, or newer.
#
#   build.sh server|operator|postgres …
#
# DEVICE=cuda gives the server's the CUDA libraries too. IMAGE_BUILDER is docker or buildah, with
# arguments of its own if need be; BASE another base image, best with its digest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sextant}
TARGET=${CARGO_TARGET_DIR:-$CACHE/target}
DEVICE=${DEVICE:-cpu}
[ "$DEVICE" != auto ] || DEVICE=cpu
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
POSTGRES=$(sed -n 's/^ARG MAJOR=//p' deploy/images/postgres/Dockerfile)

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

if [ -z "${IMAGE_BUILDER:-}" ]; then
    # A docker without its daemon builds nothing.
    if timeout 10 docker info >/dev/null 2>&1; then IMAGE_BUILDER=docker
    elif command -v buildah >/dev/null; then IMAGE_BUILDER=buildah
    else die 'Neither docker (with its daemon) nor buildah is there, and IMAGE_BUILDER names no other.'; fi
fi

# Links where the file system allows it: libtorch is large.
copy() { cp --recursive --dereference --link "$@" 2>/dev/null || cp --recursive --dereference --preserve=timestamps "$@"; }

server() {
    local torch=$CACHE/libtorch wheels file device
    wheels=$(readlink -f "$torch")/..
    program sextant-server
    copy "$CACHE/model/." "$context/model"
    for device in cpu $([ "$DEVICE" = cpu ] || echo "$DEVICE"); do
        mkdir -p "$context/$device/torch/lib" "$context/$device/nvidia/cu13/lib"
        for file in libc10 libgomp libtorch_cpu; do
            copy "$torch"/lib/$file.so* "$context/$device/torch/lib/"
        done
        # libtorch does not load without these two, GPU or not.
        copy "$wheels"/nvidia/cu13/lib/libcu{dart,pti}.so.* "$context/$device/nvidia/cu13/lib/"
        { deploy/images/sbom.sh crates sextant-server && deploy/images/sbom.sh wheels "$wheels"; } \
            >"$context/components-$device"
    done
    if [ "$DEVICE" = cuda ]; then
        [ -d "$wheels/nvidia/cudnn" ] || die 'The CUDA libraries are not there: deploy/setup/setup.sh cuda'
        copy "$torch"/lib/lib{c10_cuda,torch,torch_cuda,torch_cuda_linalg,torch_nvshmem,caffe2_nvrtc}.so* \
            "$context/cuda/torch/lib/"
        copy "$wheels/nvidia/." "$context/cuda/nvidia"
    fi
}

operator() {
    program sextant-operator
    deploy/images/sbom.sh crates sextant-operator >"$context/components"
}

postgres() { : >"$context/components"; }

program() {
    [ -x "$TARGET/release/$1" ] || die "$1 is not built: make build"
    cp --preserve=timestamps "$TARGET/release/$1" "$context/"
    strip --strip-debug "$context/$1"
    touch --reference "$TARGET/release/$1" "$context/$1"
}

[ $# -gt 0 ] || die "usage: $0 server|operator|postgres …"
for name; do
    [ -f "deploy/images/$name/Dockerfile" ] || die "There is no image $name: server, operator, postgres"
    context=$CACHE/images/$name
    tag=$VERSION
    [ "$name" != postgres ] || tag=$POSTGRES
    [ "$name-$DEVICE" != server-cuda ] || tag+=-cuda
    rm -rf "$context"
    mkdir -p "$context"
    cp --preserve=timestamps deploy/images/sbom.sh "$context/"
    "$name"
    # shellcheck disable=SC2086 # a program and its arguments
    $IMAGE_BUILDER build ${BASE:+--build-arg "BASE=$BASE"} --build-arg "DEVICE=$DEVICE" \
        --build-arg "VERSION=$VERSION" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || true)" \
        --file "deploy/images/$name/Dockerfile" --tag "sextant-$name:$tag" "$context"
done
