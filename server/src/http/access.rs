//! Who may pass, and for how long.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::Problem;
use super::{AppState, trace};
use crate::auth::{Caller, Scope};
use crate::log::AUDIT;

/// The address of the client, put into every request by the listener.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// When the answer must be there.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// A number that tells callers apart.
#[derive(Clone, Copy, Debug)]
pub struct CallerId(pub u64);

pub async fn authorize(
    State((state, scope)): State<(AppState, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let admin = (scope == Scope::Admin).then(|| Call {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        peer,
    });
    let mut key = None;
    let response = match check(&state, scope, request.headers()) {
        Ok(caller) => {
            let mut hasher = DefaultHasher::new();
            caller.name.hash(&mut hasher);
            peer.hash(&mut hasher);
            request.extensions_mut().insert(CallerId(hasher.finish()));
            let response = next.run(request).await;
            key.clone_from(&caller.name);
            drop(caller); // until here the call counts as under way
            response
        }
        Err(problem) => problem.into_response(),
    };
    if let Some(call) = admin {
        call.log(key.as_deref(), &response);
    }
    response
}

/// A call that needs the scope admin.
struct Call {
    method: Method,
    path: String,
    peer: Option<IpAddr>,
}

impl Call {
    /// Who did what, and whether it was done: also of those who may not.
    fn log(&self, key: Option<&str>, response: &Response) {
        tracing::info!(
            target: AUDIT,
            key,
            peer = self.peer.map(tracing::field::display),
            method = %self.method,
            path = self.path,
            status = response.status().as_u16(),
            request_id = trace::current_request_id(),
            trace_id = trace::current_trace_id(),
            "admin call",
        );
    }
}

/// Whether a request with these headers may do what `scope` allows.
pub fn check(state: &AppState, scope: Scope, headers: &HeaderMap) -> Result<Caller, Problem> {
    if !state.keys.required() {
        local_host(headers)?;
    }
    let key = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    Ok(state.keys.authorize(key, scope)?)
}

/// A server without keys answers only to local names: otherwise a web page could have its own name
/// point to this machine and read everything through its visitor's browser (DNS rebinding).
fn local_host(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let host = host.to_str().unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |h| h.0);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let local = name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if local {
        return Ok(());
    }
    Err(Problem::new(
        "forbidden",
        "a server without API keys answers only to localhost; set `auth.keys_file` to serve this name",
    ))
}

/// Answers 504 when the rest takes too long.
pub async fn deadline(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let deadline = Instant::now() + Duration::from_millis(state.config.request_timeout_ms);
    request.extensions_mut().insert(Deadline(deadline));
    tokio::time::timeout_at(deadline.into(), next.run(request))
        .await
        .unwrap_or_else(|_| Problem::deadline_exceeded().into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_names_reach_a_server_without_keys() {
        let allowed = |host: &str| {
            let headers = [(header::HOST, host.parse().unwrap())].into_iter().collect();
            local_host(&headers).is_ok()
        };
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.8.9.1"] {
            assert!(allowed(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "10.0.0.1", "[::2]:80", ""] {
            assert!(!allowed(host), "{host}");
        }
    }
}
