#!/usr/bin/env bash
# Runs the end-to-end tests on a cluster of their own, which ends with them, or, with
# USE_EXISTING_CLUSTER=true, on that of KUBECONFIG, whose nodes must have the images.
#
#   run.sh [core | NAME…]     all of them; those that CI runs; those with a name like this
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."

# What CI runs: the installation, a crash of the primary, a rolling update, the operator killed.
CORE=(
    the_readmes_commands_bring_up_a_stack
    writes_go_on_soon_after_the_primarys_process_is_killed
    no_search_fails_during_a_rolling_update
    a_rollout_goes_on_after_the_operator_was_killed
)

if [ "${USE_EXISTING_CLUSTER:-}" = true ]; then
    deploy/setup/setup.sh kubernetes charts
else
    trap 'status=$?; trap - INT TERM; "$here/cluster.sh" down; exit $status' EXIT
    trap 'exit 130' INT TERM
    make cluster-up
fi
if [ "${1:-}" = core ]; then
    set -- "${CORE[@]}"
elif [ "${USE_EXISTING_CLUSTER:-}" != true ]; then
    # What the cluster of Milvus is made of.
    deploy/setup/setup.sh milvus23 cluster-stores
    "$here/images.sh" milvus23 etcd kafka s3 redis-exporter
fi
# One at a time: they share a stack, and break it.
cargo test --release --locked --workspace --test e2e -- --test-threads=1 --nocapture "$@"
