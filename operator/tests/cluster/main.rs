//! The operator's process against a real Kubernetes: etcd, kube-apiserver, kube-controller-manager.
//! Pods are made but not run: the tests say when they are ready.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod access;
mod behaviour;
mod changes;
mod chart;
mod crds;
mod dashboards;
mod faults;
mod hostile;
mod plan;
mod postgres;
mod rules;
mod scale;
mod support;
