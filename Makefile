# Sextant. `make` alone lists the targets; README.md says more.

# Settings, from the environment or as arguments: make run PORT=9000
PORT ?= 8080
DATA_DIR ?= .data
DEVICE ?= auto
ARGS ?=

CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/sextant
# Outside the checkout, so that another clone need not build it all again.
CARGO_TARGET_DIR ?= $(CACHE)/target
MODEL_DIR ?= $(CACHE)/model
# Not from the environment: one that belongs to something else would build anything anew.
LIBTORCH := $(CACHE)/libtorch
export CACHE CARGO_TARGET_DIR LIBTORCH MODEL_DIR
export LIBTORCH_CXX11_ABI := 1
# Where rustup puts cargo; a shell that was open before does not know of it yet.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

# As they were given: without `value`, make would expand a $ in them once more.
run: export SEXTANT_SERVER__LISTEN = 127.0.0.1:$(value PORT)
run: export SEXTANT_SERVER__DATA_DIR = $(value DATA_DIR)
run: export SEXTANT_EMBEDDER__MODEL_DIR = $(MODEL_DIR)
run: export SEXTANT_EMBEDDER__DEVICE = $(value DEVICE)

run-full: export PORT := $(value PORT)
run-full: export DATA_DIR := $(value DATA_DIR)
run-full: export SEXTANT_EMBEDDER__MODEL_DIR = $(MODEL_DIR)
run-full: export SEXTANT_EMBEDDER__DEVICE = $(value DEVICE)

# Most tests wait for servers that they started, and leave the cores to others.
test: export RUST_TEST_THREADS ?= $(shell expr 2 '*' "$$(nproc)")

run run-full images bench-embed: export DEVICE := $(value DEVICE)

MAKEFLAGS += --no-print-directory
# Under `make -j`, cargo would look for the jobserver that this names, which is not open to it.
unexport MAKEFLAGS
SETUP := deploy/setup/setup.sh
# The libraries that a GPU needs, where one is asked for.
CUDA := case "$$DEVICE" in cuda*) $(SETUP) cuda ;; esac
SERVER := "$$CARGO_TARGET_DIR/release/sextant-server"
OPERATOR := "$$CARGO_TARGET_DIR/release/sextant-operator"
BENCH := "$$CARGO_TARGET_DIR/release/bench"
DASHBOARDS := "$$CARGO_TARGET_DIR/release/dashboards"
SIZING := "$$CARGO_TARGET_DIR/release/sizing"
# For kubectl, and for the chart, which takes nothing from outside its folder.
CRDS := crds/searchdeployments.yaml charts/sextant/files/searchdeployments.yaml
GRAFANA := charts/sextant/files/dashboards
# Of the whole workspace, whatever is built: dependencies then have the same features, and nothing is
# built twice.
CARGO_ARGS := --release --locked --workspace

# cargo uses all cores by itself, and the targets build on each other.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup build run run-full images cluster-up cluster-down e2e test fmt fmt-check lint deny openapi crds dashboards sizing generated bench bench-embed clean

help: ## List the targets
	@echo 'usage: make TARGET [PORT=8080] [DATA_DIR=.data] [DEVICE=auto]'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Check the tools; fetch libtorch and the model, once
	@$(SETUP) tools checkout libs

build: setup ## Build the server and the operator
	@cargo build $(CARGO_ARGS) --bin sextant-server --bin sextant-operator

run: build ## Set up, build and serve http://127.0.0.1:PORT with the sample documents
	@$(CUDA)
	@exec $(SERVER) serve --seed exercises=deploy/samples/exercises.ndjson

run-full: build ## The same with Redis, Postgres, Milvus, three servers and nginx
	@$(CUDA)
	@$(SETUP) services milvus
	@cargo build $(CARGO_ARGS) --bin run-full
	@exec "$$CARGO_TARGET_DIR/release/run-full" --seed exercises=deploy/samples/exercises.ndjson

images: build ## Images of server, operator and Postgres, with docker or buildah; DEVICE=cuda
	@$(CUDA)
	@deploy/images/build.sh server operator postgres

cluster-up: build ## A Kubernetes of two nodes on this machine, with the images in it; needs root
	@$(SETUP) kubernetes charts cluster milvus
	@cargo build $(CARGO_ARGS) --bin e2e-load --bin e2e-provisioner
	@tests/e2e/cluster.sh up
	@tests/e2e/images.sh server operator postgres redis milvus load

cluster-down: ## End it
	@tests/e2e/cluster.sh down

e2e: ## Tests on a real Kubernetes: a new one of our own, or that of KUBECONFIG with USE_EXISTING_CLUSTER=true
	@tests/e2e/run.sh $(ARGS)

test: build ## All tests; they need chromium, Redis, Postgres, nginx, HAProxy, Prometheus, Go, etcd
	@$(SETUP) browser services milvus milvus23 kubernetes charts
	@cargo test $(CARGO_ARGS)

fmt: ## Format the code
	@cargo fmt --all

fmt-check: ## Is the code formatted?
	@cargo fmt --all --check

lint: setup ## Clippy, warnings being errors
	@cargo clippy $(CARGO_ARGS) --all-targets -- -D warnings

deny: ## Licences, sources, doubled versions and known weaknesses of the dependencies
	@$(SETUP) cargo-deny
	@"$$CACHE/bin/cargo-deny" --locked check licenses bans sources
	@if GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; \
	then "$$CACHE/bin/cargo-deny" --locked check advisories; \
	else echo 'advisories: not checked, the database cannot be reached'; fi

openapi: build ## Write docs/openapi.json
	@mkdir -p docs && $(SERVER) openapi > docs/openapi.json.part && mv docs/openapi.json.part docs/openapi.json

crds: build ## Write crds/, also into the chart
	@for file in $(CRDS); do $(OPERATOR) crd > $$file.part && mv $$file.part $$file || exit; done

dashboards: setup ## Write the dashboards for Grafana into the chart
	@cargo build $(CARGO_ARGS) --bin dashboards
	@$(DASHBOARDS) $(GRAFANA)

sizing: setup ## Write the tables of docs/sizing.md from docs/measured/: make sizing ARGS='--help'
	@cargo build $(CARGO_ARGS) --bin sizing
	@$(SIZING) $(ARGS)

generated: build ## Are docs/openapi.json, crds/, the dashboards and docs/sizing.md what the programs say?
	@cargo build $(CARGO_ARGS) --bin dashboards --bin sizing
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(DASHBOARDS) "$$folder" && diff -ru $(GRAFANA) "$$folder" || \
		{ echo 'the dashboards are not up to date: make dashboards' >&2; exit 1; }
	@$(SIZING) --check
	@$(SERVER) openapi | diff -u docs/openapi.json - || { echo 'docs/openapi.json is not up to date: make openapi' >&2; exit 1; }
	@for file in $(CRDS); do $(OPERATOR) crd | diff -u $$file - || { echo "$$file is not up to date: make crds" >&2; exit 1; }; done

bench: build ## Benchmarks: make bench ARGS='--help'
	@cargo build $(CARGO_ARGS) --bin bench
	@$(BENCH) $(ARGS)

bench-embed: build ## The model beside sentence-transformers and ONNX Runtime
	@$(SETUP) embed-peers
	@cargo build $(CARGO_ARGS) --bin bench
	@$(BENCH) --device "$$DEVICE" \
		$(or $(ARGS),--seconds 1 --rounds 7) \
		embed --python "$$CACHE/embed-peers/bin/python" --folder "$$CACHE/embed-bench" \
		$(if $(CRANFIELD),--cranfield "$(CRANFIELD)")
	@"$$CACHE/embed-peers/bin/python" tests/embed-peers/plot.py "$$CACHE/embed-bench/embed.json" "$$CACHE/embed-bench/embed.png"
	@echo "Plot: $$CACHE/embed-bench/embed.png"

clean: ## Remove what was built; libtorch, the model and the data stay
	@cargo clean
