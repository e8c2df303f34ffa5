#!/usr/bin/env bash
# A Kubernetes of two nodes on this machine, for the end-to-end tests: the second node lives in a
# network namespace of its own, so that it can be cut off. Needs root and what `setup.sh cluster`
# installs. Each start makes a new cluster; images stay.
#
#   cluster.sh up       starts it, after clearing away one that is there or half there
#   cluster.sh down     ends it
#   cluster.sh missing  says why none can be started here; success when one can, once it is set up
#   cluster.sh load FILE NAME     imports an OCI archive into both nodes unless they have just that
#   cluster.sh tag NAME NAME      gives an image of both nodes another name, too
#   cluster.sh cut | mend         takes the second node's network away; gives it back
#   cluster.sh freeze | thaw      stops everything on the second node; goes on with it
#   cluster.sh metrics            starts a metrics server, for autoscalers
#
# KUBECONFIG is /run/sextant-cluster/admin.yaml.
#
# Source of flags and settings: https://kubernetes.io/docs/setup/best-practices/certificates/ and
# https://kubernetes.io/docs/reference/command-line-tools-reference/
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sextant}
TARGET=${CARGO_TARGET_DIR:-$CACHE/target}
BIN=$CACHE/kubernetes
# Names that nothing else uses: whatever bears them is ours, and is cleared away.
RUN=/run/sextant-cluster
DISK=$CACHE/cluster
NODES=(node1 node2)
NETNS=sx-node2
NODE_IP=(10.250.0.1 10.250.0.2)
POD_CIDR=(10.244.1.0/24 10.244.2.0/24)
GATEWAY=(10.244.1.1 10.244.2.1)
SERVICES=10.96.0.0/16
API=https://${NODE_IP[0]}:6443
SELF=$here/cluster.sh

die() {
    printf 'cluster.sh: %s\n' "$*" >&2
    exit 1
}

# start NAME COMMAND…: in the background, with its log and its pid in $RUN.
start() {
    local name=$1
    shift
    SEXTANT_CLUSTER=$RUN setsid "$@" >"$RUN/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/$name.pid"
}

# until_true SECONDS WHAT COMMAND…
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || die "$what: not in time, see the logs in $RUN"
        sleep 0.1
    done
}

kubectl() { "$BIN/kubectl" --kubeconfig "$RUN/admin.yaml" "$@"; }

# on N COMMAND…: with the network of a node.
on() {
    local node=$1
    shift
    if [ "$node" = 0 ]; then "$@"; else nsenter --net="/run/netns/$NETNS" "$@"; fi
}

### Ending

stop() {
    local pid file=$RUN/$1.pid i
    [ -f "$file" ] || return 0
    pid=$(cat "$file")
    rm -f "$file"
    # A pid from before may be another's by now.
    grep -qs "SEXTANT_CLUSTER=$RUN" "/proc/$pid/environ" || return 0
    kill "$pid" 2>/dev/null || return 0
    for ((i = 0; i < ${2:-50}; i++)); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
}

# Everything in the nodes' cgroups: pods, their shims, kubelets, containerds.
kill_cgroups() {
    local file pids i
    for ((i = 0; i < 50; i++)); do
        for file in $(find /sys/fs/cgroup/freezer/sx-node* -name freezer.state 2>/dev/null); do
            echo THAWED >"$file" 2>/dev/null || true
        done
        pids=$(find /sys/fs/cgroup/*/sx-node* -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u || true)
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086 # a list
        kill -9 $pids 2>/dev/null || true
        sleep 0.1
    done
    find /sys/fs/cgroup/*/sx-node* -depth -type d -exec rmdir {} + 2>/dev/null || true
}

clear_iptables() {
    local tool table chain
    for tool in iptables ip6tables; do
        for table in filter nat mangle; do
            "$tool-save" -t "$table" 2>/dev/null | sed -En 's/^-A (.*(KUBE-|CNI-|sx-).*)/\1/p' |
                while read -r rule; do eval "$tool -w -t $table -D $rule" 2>/dev/null || true; done
            for chain in $("$tool-save" -t "$table" 2>/dev/null | sed -En 's/^:((KUBE|CNI|sx)-[^ ]*) .*/\1/p'); do
                "$tool" -w -t "$table" -F "$chain" 2>/dev/null || true
            done
            for chain in $("$tool-save" -t "$table" 2>/dev/null | sed -En 's/^:((KUBE|CNI|sx)-[^ ]*) .*/\1/p'); do
                "$tool" -w -t "$table" -X "$chain" 2>/dev/null || true
            done
        done
    done
}

down() {
    local name mounted disk=$DISK
    [ ! -f "$RUN/disk" ] || disk=$(cat "$RUN/disk")
    for name in metrics provisioner coredns policies-node1 policies-node2 kube-proxy-node1 kube-proxy-node2 kubelet-node1 kubelet-node2 scheduler controllers; do
        stop "$name"
    done
    kill_cgroups
    for name in containerd-node1 containerd-node2 apiserver etcd; do stop "$name"; done
    # The last mount first.
    for mounted in $(awk -v a="$RUN/" -v b="$disk/" \
        'index($2, a) == 1 || index($2, b) == 1 { print $2 }' /proc/mounts | tac); do
        umount "$mounted" 2>/dev/null || umount -l "$mounted" || true
    done
    for name in $(ip netns list 2>/dev/null | awk '/^(cni-|sx-)/ { print $1 }'); do
        ip netns delete "$name" 2>/dev/null || true
    done
    for name in sx-cni0 sx-br0 sx-n2; do ip link delete "$name" 2>/dev/null || true; done
    clear_iptables
    rm -rf "$RUN" "$disk/run"
}

### Starting

# certificate NAME SUBJECT [ALTERNATIVE NAMES]
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$RUN/pki/$1.key" \
        -out "$RUN/pki/$1.csr" -subj "$2" 2>/dev/null
    openssl x509 -req -in "$RUN/pki/$1.csr" -CA "$RUN/pki/ca.crt" -CAkey "$RUN/pki/ca.key" -CAcreateserial \
        -days 30 -out "$RUN/pki/$1.crt" 2>/dev/null \
        -extfile <(echo "extendedKeyUsage=clientAuth,serverAuth${3:+
subjectAltName=$3}")
}

# kubeconfig NAME CERTIFICATE
kubeconfig() {
    cat >"$RUN/$1.yaml" <<YAML
apiVersion: v1
kind: Config
current-context: sextant
clusters:
- {name: sextant, cluster: {server: "$API", certificate-authority: $RUN/pki/ca.crt}}
contexts:
- {name: sextant, context: {cluster: sextant, user: $1}}
users:
- {name: $1, user: {client-certificate: $RUN/pki/$2.crt, client-key: $RUN/pki/$2.key}}
YAML
}

keys() {
    local node
    mkdir -p "$RUN/pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
        -keyout "$RUN/pki/ca.key" -out "$RUN/pki/ca.crt" -subj /CN=sextant-cluster 2>/dev/null
    openssl ecparam -name prime256v1 -genkey -noout -out "$RUN/pki/sa.key"
    openssl ec -in "$RUN/pki/sa.key" -pubout -out "$RUN/pki/sa.pub" 2>/dev/null
    certificate apiserver /CN=kube-apiserver \
        "IP:127.0.0.1,IP:10.96.0.1,IP:${NODE_IP[0]},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
    certificate admin /O=system:masters/CN=admin
    certificate controllers /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate proxy /CN=system:kube-proxy
    certificate coredns /CN=coredns
    certificate front-proxy /CN=front-proxy
    for node in 0 1; do
        certificate "${NODES[node]}" "/O=system:nodes/CN=system:node:${NODES[node]}" \
            "DNS:${NODES[node]},IP:${NODE_IP[node]}"
        kubeconfig "${NODES[node]}" "${NODES[node]}"
    done
    for node in admin controllers scheduler proxy coredns; do kubeconfig "$node" "$node"; done
}

network() {
    local outside
    ip link add sx-br0 type bridge
    ip address add "${NODE_IP[0]}/24" dev sx-br0
    ip link set sx-br0 up
    ip netns add "$NETNS"
    ip link add sx-n2 type veth peer name eth0 netns "$NETNS"
    ip link set sx-n2 master sx-br0 up
    on 1 ip address add "${NODE_IP[1]}/24" dev eth0
    on 1 ip link set eth0 up
    on 1 ip link set lo up
    on 1 ip route add default via "${NODE_IP[0]}"
    ip route add "${POD_CIDR[1]}" via "${NODE_IP[1]}"
    on 1 sysctl -q net.ipv4.ip_forward=1
    sysctl -q net.ipv4.ip_forward=1
    # CoreDNS listens there, before the first pod makes it.
    ip link add sx-cni0 type bridge
    ip address add "${GATEWAY[0]}/24" dev sx-cni0
    ip link set sx-cni0 up
    # What the tests do stays on this machine.
    outside=$(ip route show default | awk '{ print $5; exit }')
    if [ -n "$outside" ]; then
        iptables -w -I FORWARD -s 10.244.0.0/16 -o "$outside" -j REJECT -m comment --comment sx-outside
        iptables -w -I FORWARD -s 10.250.0.0/24 -o "$outside" -j REJECT -m comment --comment sx-outside
    fi
}

control_plane() {
    local etcd=$CACHE/bin/etcd fast='' pki=$RUN/pki
    [ -x "$etcd" ] || etcd=etcd
    # etcd 3.4 does not know it.
    if "$etcd" --help 2>&1 | grep -c unsafe-no-fsync >/dev/null; then fast=--unsafe-no-fsync; fi
    start etcd "$etcd" --data-dir "$DISK/run/etcd" $fast \
        --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379 \
        --listen-peer-urls http://127.0.0.1:12380 --initial-advertise-peer-urls http://127.0.0.1:12380 \
        --initial-cluster default=http://127.0.0.1:12380
    start apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:12379 \
        --bind-address="${NODE_IP[0]}" --advertise-address="${NODE_IP[0]}" --secure-port=6443 \
        --service-cluster-ip-range="$SERVICES" --allow-privileged=true --authorization-mode=Node,RBAC \
        --enable-admission-plugins=NodeRestriction --client-ca-file="$pki/ca.crt" \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --service-account-issuer="$API" --service-account-key-file="$pki/sa.pub" \
        --service-account-signing-key-file="$pki/sa.key" \
        --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
        --kubelet-preferred-address-types=InternalIP \
        --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
        --enable-aggregator-routing=true
    until_true 60 "the API server" kubectl get --raw /readyz
    # A node is lost after 12 s instead of 50: the tests wait for it often.
    start controllers "$BIN/kube-controller-manager" --kubeconfig="$RUN/controllers.yaml" \
        --authentication-kubeconfig="$RUN/controllers.yaml" --authorization-kubeconfig="$RUN/controllers.yaml" \
        --bind-address=127.0.0.1 --secure-port=11257 --leader-elect=false \
        --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" \
        --use-service-account-credentials --cluster-signing-cert-file="$pki/ca.crt" \
        --cluster-signing-key-file="$pki/ca.key" --node-monitor-grace-period=12s \
        --node-monitor-period=2s --horizontal-pod-autoscaler-sync-period=5s \
        --horizontal-pod-autoscaler-downscale-stabilization=20s
    start scheduler "$BIN/kube-scheduler" --kubeconfig="$RUN/scheduler.yaml" \
        --authentication-kubeconfig="$RUN/scheduler.yaml" --authorization-kubeconfig="$RUN/scheduler.yaml" \
        --bind-address=127.0.0.1 --secure-port=11259 --leader-elect=false
}

# In a cgroup of its own from its first moment on, so that freezing a node freezes all of it.
in_cgroup() {
    local folder group=$1
    shift
    for folder in /sys/fs/cgroup/freezer/$group /sys/fs/cgroup/pids/$group; do
        echo $BASHPID >"$folder/cgroup.procs"
    done
    exec "$@"
}

node_cgroups() {
    local group=sx-$1 controller file
    for controller in /sys/fs/cgroup/*/; do
        [ -f "$controller/cgroup.procs" ] || continue
        mkdir -p "$controller/$group"
        for file in cpuset.cpus cpuset.mems; do
            [ ! -f "$controller/$file" ] || cat "$controller/$file" >"$controller/$group/$file"
        done
    done
}

node() {
    local n=$1 name=${NODES[$1]} dir=$RUN/${NODES[$1]} root=$DISK/${NODES[$1]}
    mkdir -p "$dir/cni" "$dir/cni-state" "$dir/logs" "$root" "$DISK/run/kubelet-$name"
    node_cgroups "$name"
    cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$root/containerd"
state = "$dir/containerd"
[grpc]
  address = "$dir/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$root/opt"
[plugins."io.containerd.grpc.v1.cri"]
  # Where root may not lower a process's score, no container would start.
  restrict_oom_score_adj = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$dir/registries"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
TOML
    # There is no registry: whoever names an image that is not here is told so at once.
    mkdir -p "$dir/registries/_default"
    echo 'server = "http://127.0.0.1:1"' >"$dir/registries/_default/hosts.toml"
    cat >"$dir/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "sextant", "plugins": [
  {"type": "bridge", "bridge": "sx-cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/cni-state",
            "ranges": [[{"subnet": "${POD_CIDR[n]}"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
JSON
    # There is no registry to pull an image from once more: none is ever removed.
    cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /sx-$name
address: ${NODE_IP[n]}
podLogsDir: $dir/logs
containerRuntimeEndpoint: unix://$dir/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $RUN/pki/$name.crt
tlsPrivateKeyFile: $RUN/pki/$name.key
clusterDomain: cluster.local
clusterDNS: ["${GATEWAY[0]}"]
resolvConf: ""
failSwapOn: false
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 24h
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 8
serializeImagePulls: false
shutdownGracePeriod: 0s
YAML
    cat >"$dir/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: 10.244.0.0/16
hostnameOverride: $name
clientConnection: {kubeconfig: $RUN/proxy.yaml}
conntrack: {maxPerCore: 0}
iptables: {minSyncPeriod: 100ms}
YAML
    start "containerd-$name" "$SELF" in-cgroup "sx-$name" "$n" containerd --config "$dir/containerd.toml"
}

node_services() {
    local n=$1 name=${NODES[$1]} dir=$RUN/${NODES[$1]}
    start "kubelet-$name" "$SELF" in-cgroup "sx-$name" "$n" "$BIN/kubelet" --config="$dir/kubelet.yaml" \
        --kubeconfig="$RUN/$name.yaml" --root-dir="$DISK/run/kubelet-$name" --hostname-override="$name" \
        --node-ip="${NODE_IP[n]}"
    start "kube-proxy-$name" "$SELF" in-cgroup "sx-$name" "$n" "$BIN/kube-proxy" --config="$dir/kube-proxy.yaml"
}

dns() {
    cat >"$RUN/Corefile" <<COREFILE
.:53 {
    bind ${GATEWAY[0]}
    errors
    kubernetes cluster.local in-addr.arpa {
        kubeconfig $RUN/coredns.yaml
        ttl 5
    }
    cache 5
}
COREFILE
    start coredns "$CACHE/bin/coredns" -conf "$RUN/Corefile"
}

objects() {
    kubectl apply -f - >/dev/null <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: coredns}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: sextant.dev/e2e
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: false
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: bounded}
provisioner: sextant.dev/e2e
parameters: {bounded: "true"}
volumeBindingMode: WaitForFirstConsumer
YAML
}

# NetworkPolicies are decided on by kube-network-policies, packet by packet for the first of each
# connection. It would hand them over by nftables, which not every kernel can: here iptables does.
policies() {
    local n name rule
    kubectl create serviceaccount -n kube-system network-policies >/dev/null
    kubectl create clusterrole network-policies --verb=list,watch \
        --resource=pods,namespaces,networkpolicies.networking.k8s.io >/dev/null
    kubectl create clusterrolebinding network-policies --clusterrole=network-policies \
        --serviceaccount=kube-system:network-policies >/dev/null
    mkdir -p "$RUN/policies"
    kubectl create token -n kube-system network-policies --duration=24h >"$RUN/policies/token"
    cp "$RUN/pki/ca.crt" "$RUN/policies/ca.crt"
    for n in 0 1; do
        name=${NODES[n]}
        start "policies-$name" "$SELF" in-pod "$n" "$CACHE/bin/kube-network-policies" \
            --hostname-override="$name" --nfqueue-id=100 --metrics-bind-address=127.0.0.1:0
        on "$n" iptables -w -t mangle -N sx-policies
        # Like the kubelet's probes: what a node itself sends is let through.
        for rule in '-m addrtype --src-type LOCAL -j RETURN' \
            '-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN' \
            '-s 10.244.0.0/16 -j NFQUEUE --queue-num 100 --queue-bypass' \
            '-d 10.244.0.0/16 -j NFQUEUE --queue-num 100 --queue-bypass'; do
            # shellcheck disable=SC2086 # words
            on "$n" iptables -w -t mangle -A sx-policies $rule
        done
        on "$n" iptables -w -t mangle -A POSTROUTING -j sx-policies
    done
}

# A program that finds the API server as in a pod of a node.
in_pod() {
    local enter=()
    [ "$1" = 0 ] || enter=(nsenter --net="/run/netns/$NETNS")
    shift
    export KUBERNETES_SERVICE_HOST=${NODE_IP[0]} KUBERNETES_SERVICE_PORT=6443
    # shellcheck disable=SC2016 # the inner shell's
    exec "${enter[@]}" unshare --mount sh -c '
        mount --bind "$0" /mnt
        mount -t tmpfs none /run
        mkdir -p /run/secrets/kubernetes.io
        ln -s /mnt /run/secrets/kubernetes.io/serviceaccount
        exec "$@"' "$RUN/policies" "$@"
}

metrics() {
    ! kill -0 "$(cat "$RUN/metrics.pid" 2>/dev/null)" 2>/dev/null || return 0
    start metrics "$CACHE/bin/metrics-server" --kubeconfig="$RUN/admin.yaml" \
        --authentication-kubeconfig="$RUN/admin.yaml" --authorization-kubeconfig="$RUN/admin.yaml" \
        --bind-address="${NODE_IP[0]}" --secure-port=11443 --cert-dir="$RUN/metrics" \
        --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$RUN/pki/ca.crt" \
        --metric-resolution=10s --kubelet-request-timeout=5s
    # Only now: while a registered API does not answer, no namespace can be deleted.
    until_true 30 'the metrics server' bash -c "</dev/tcp/${NODE_IP[0]}/11443"
    kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec: {ports: [{port: 443, targetPort: 11443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics-server, namespace: kube-system, labels: {kubernetes.io/service-name: metrics-server}}
addressType: IPv4
ports: [{port: 11443}]
endpoints: [{addresses: ["${NODE_IP[0]}"]}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  service: {name: metrics-server, namespace: kube-system}
  group: metrics.k8s.io
  version: v1beta1
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
YAML
    until_true 60 'metrics of nodes' kubectl get --raw /apis/metrics.k8s.io/v1beta1/nodes
}

# Whether a node has the image of this reference, of this archive.
archive_mark() { echo "$DISK/$1/archives/$(tr '/:' '__' <<<"$2")"; }

load() {
    local file=$1 image=$2 name sum mark
    sum=$(sha256sum "$file" | cut -d' ' -f1)
    for name in "${NODES[@]}"; do
        mark=$(archive_mark "$name" "$image")
        [ "$(cat "$mark" 2>/dev/null)" != "$sum" ] || continue
        ctr -a "$RUN/$name/containerd.sock" -n k8s.io images import "$file" >/dev/null
        mkdir -p "${mark%/*}"
        echo "$sum" >"$mark"
    done
}

# What nobody can install: one line for each.
missing() {
    local why
    why=$(
        [ "$(id -u)" = 0 ] || echo 'not root'
        [ -d /sys/fs/cgroup/freezer ] || echo 'no cgroups of version 1'
        unshare --net --mount true 2>/dev/null || echo 'no namespaces'
    )
    [ -z "$why" ] || { echo "$why" | paste -sd ';'; return 1; }
}

not_set_up() {
    local program
    for program in containerd runc iptables ip conntrack nsenter openssl ctr mkfs.ext4 "$BIN/kubelet" \
        "$BIN/kubectl" "$CACHE/bin/coredns" "$CACHE/bin/kube-network-policies" "$CACHE/bin/metrics-server" "$TARGET/release/e2e-provisioner"; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

up() {
    local n begin=$SECONDS why
    why=$(missing) || die "$why"
    why=$(not_set_up | paste -sd ' ')
    [ -z "$why" ] || die "not there: $why. make cluster-up installs what it can"
    down
    trap 'down' ERR INT TERM
    mkdir -p "$RUN" "$DISK/run"
    chmod 700 "$RUN"
    echo "$DISK" >"$RUN/disk"
    keys
    network
    for n in 0 1; do node $n; done
    control_plane
    for n in 0 1; do
        until_true 30 "containerd on ${NODES[n]}" ctr -a "$RUN/${NODES[n]}/containerd.sock" version
    done
    "$here/images.sh" pause
    objects
    dns
    for n in 0 1; do node_services $n; done
    policies
    start provisioner env KUBECONFIG="$RUN/admin.yaml" "$TARGET/release/e2e-provisioner" "$DISK/run/volumes"
    for n in 0 1; do
        until_true 60 "${NODES[n]}" kubectl wait --for=condition=Ready --timeout=1s "node/${NODES[n]}"
    done
    until_true 60 "the account of pods" kubectl get serviceaccount default
    echo "A Kubernetes of two nodes is ready after $((SECONDS - begin)) s: export KUBECONFIG=$RUN/admin.yaml"
}

case ${1:-} in
up | down | missing | metrics) "$1" ;;
load) load "$2" "$3" ;;
tag)
    for name in "${NODES[@]}"; do
        ctr -a "$RUN/$name/containerd.sock" -n k8s.io images tag --force "$2" "$3" >/dev/null
    done
    ;;
cut) ip link set sx-n2 down ;;
mend) ip link set sx-n2 up ;;
freeze) echo FROZEN >/sys/fs/cgroup/freezer/sx-node2/freezer.state ;;
thaw) echo THAWED >/sys/fs/cgroup/freezer/sx-node2/freezer.state ;;
in-pod)
    shift
    in_pod "$@"
    ;;
in-cgroup)
    shift
    group=$1 node=$2
    shift 2
    if [ "$node" = 0 ]; then in_cgroup "$group" "$@"; else in_cgroup "$group" nsenter --net="/run/netns/$NETNS" "$@"; fi
    ;;
*) die "usage: cluster.sh up | down | missing | load FILE NAME | tag NAME NAME | cut | mend | freeze | thaw | metrics" ;;
esac
