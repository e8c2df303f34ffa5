//! One operator of several makes the changes: whoever holds the Lease. All others keep their caches
//! warm.
//!
//! # Source
//! Kubernetes, client-go `tools/leaderelection`: a holder is judged by one's own clock, from when its
//! last renewal was seen, so that clocks need not agree.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

/// A holder that has not renewed for this long has lost the lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops by itself, before others may begin.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// What was last seen of the lease.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    transitions: i32,
}

/// Whether the lease may be taken. Pure.
fn may_take(seen: &Seen, own: &str, since: Duration) -> bool {
    seen.holder.is_empty() || seen.holder == own || since >= DURATION
}

pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// What was last seen, and since when it is so.
    seen: Option<(Seen, Instant)>,
}

impl Election {
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            seen: None,
        }
    }

    /// Waits until this operator is the leader.
    pub async fn acquire(&mut self) {
        loop {
            match self.try_hold().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot ask for the lease"),
            }
            tokio::time::sleep(jittered(RETRY)).await;
        }
    }

    /// Keeps the lease until it is lost or `stop` says so, and then gives it back.
    pub async fn keep(&mut self, mut stop: watch::Receiver<bool>) {
        let mut renewed = Instant::now();
        while !*stop.borrow() {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = stop.changed() => break,
            }
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::error!("another operator holds the lease");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the lease"),
                Err(_) => {}
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                tracing::error!("the lease could not be renewed in time");
                return;
            }
        }
    }

    /// Lets another operator begin at once.
    pub async fn release(&mut self) {
        let released = async {
            let mut lease = self.leases.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(RETRY, released).await {
            tracing::warn!(%error, "cannot give the lease back");
        }
    }

    async fn try_hold(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.held(0, None)),
            };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let seen = Seen {
            holder: spec.holder_identity.unwrap_or_default(),
            renewed: spec.renew_time,
            transitions: spec.lease_transitions.unwrap_or_default(),
        };
        let since = match &self.seen {
            Some((before, since)) if *before == seen => since.elapsed(),
            _ => {
                self.seen = Some((seen.clone(), Instant::now()));
                Duration::ZERO
            }
        };
        if !may_take(&seen, &self.identity, since) {
            return Ok(false);
        }
        let same = seen.holder == self.identity;
        let transitions = seen.transitions + i32::from(!same);
        let acquired = same.then_some(spec.acquire_time).flatten();
        let taken = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                // Whoever else wrote it meanwhile wins.
                resource_version: lease.resource_version(),
                ..ObjectMeta::default()
            },
            spec: Some(self.held(transitions, acquired)),
        };
        won(self.leases.replace(&self.name, &PostParams::default(), &taken).await)
    }

    fn held(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ones_own_or_not_renewed_for_its_duration() {
        let held = |by: &str| Seen { holder: by.to_owned(), renewed: None, transitions: 0 };
        assert!(may_take(&held(""), "me", Duration::ZERO));
        assert!(may_take(&held("me"), "me", Duration::ZERO));
        assert!(!may_take(&held("other"), "me", DURATION.mul_f64(0.99)));
        assert!(may_take(&held("other"), "me", DURATION));
    }
}
