//! How to reach Redis, with a bound on every wait and every buffer.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fred::prelude::{
    Builder, Client, Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig,
};
use fred::types::RespVersion;
use fred::types::config::UnresponsiveConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::cache::CacheLimits;

/// Longest wait for a connection, its handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection whose oldest command has waited for so long is given up and made anew.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(2);
const UNRESPONSIVE_CHECK: Duration = Duration::from_millis(500);
/// Commands that may wait for the connection; more are refused at once.
const MAX_WAITING_COMMANDS: usize = 2_048;
/// Messages that may wait to be handled. More are lost, which is noticed.
const MAX_WAITING_MESSAGES: usize = 1_024;
/// Pauses between attempts to connect, in milliseconds. At most half a second, as invalidations do
/// not arrive meanwhile.
const RECONNECT: (u32, u32) = (50, 500);
const RECONNECT_JITTER_MS: u32 = 50;

#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://`, `rediss://` (TLS), with `-cluster` or `-sentinel` after either.
    pub url: String,
    /// Of the access list; empty for the default user or the one in the URL.
    pub user: String,
    pub password: Option<String>,
    /// Certificate authority in PEM, when it is not one that the system knows.
    pub ca_file: Option<PathBuf>,
    /// Keys and the channel begin so.
    pub prefix: String,
    /// Longest wait of a search.
    pub timeout: Duration,
    /// Times to live of answers; the sizes are Redis's own affair.
    pub results: CacheLimits,
    pub embeddings: CacheLimits,
    /// How long an answer is kept for when no other can be computed.
    pub max_stale: Duration,
}

impl fmt::Debug for RedisOptions {
    /// Without the password, which the URL may hold, too.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.url.rsplit('@').next().unwrap_or_default();
        formatter
            .debug_struct("RedisOptions")
            .field("host", &host)
            .field("user", &self.user)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// The options name no Redis that could be there. Never tells the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    #[error("`redis.url` is no address of Redis: {0}")]
    Url(String),
    #[error("`redis.tls_ca_file`: {0}")]
    CaFile(String),
}

/// The connections of one server. Look-ups do not wait behind values that are being written.
pub struct Clients {
    pub look_ups: Client,
    pub writes: Client,
    pub events: Client,
}

impl Clients {
    /// `patience`: longest wait of a command that no search waits for.
    pub fn new(options: &RedisOptions, patience: Duration) -> Result<Self, RedisError> {
        let config = config(options)?;
        Ok(Self {
            look_ups: client(config.clone(), options.timeout)?,
            writes: client(config.clone(), patience)?,
            // In version 3 of the protocol a connection with subscriptions also takes a ping.
            events: client(Config { version: RespVersion::RESP3, ..config }, patience)?,
        })
    }
}

fn config(options: &RedisOptions) -> Result<Config, RedisError> {
    let told = |error: &fred::error::Error| RedisError::Url(error.details().to_owned());
    let mut config = if let Some(file) = &options.ca_file {
        // Parsed without TLS: fred would load the system's authorities, which may not exist.
        let plain = options.url.replacen("rediss", "redis", 1);
        let mut config = Config::from_url(&plain).map_err(|error| told(&error))?;
        if plain != options.url {
            let failed = |error: &dyn fmt::Display| RedisError::CaFile(error.to_string());
            let certificates = CertificateDer::pem_file_iter(file)
                .map_err(|error| failed(&error))?
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| failed(&error))?;
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates {
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| failed(&error))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.tls = Some(fred::types::config::TlsConnector::from(tls).into());
        }
        config
    } else {
        // fred's own TLS set-up asks for the process's provider; a second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Config::from_url(&options.url).map_err(|error| told(&error))?
    };
    // The first connection is tried again like every later one.
    config.fail_fast = false;
    if !options.user.is_empty() {
        config.username = Some(options.user.clone());
    }
    if options.password.is_some() {
        config.password.clone_from(&options.password);
    }
    Ok(config)
}

fn client(config: Config, command_timeout: Duration) -> Result<Client, RedisError> {
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT.0, RECONNECT.1, 2);
    policy.set_jitter(RECONNECT_JITTER_MS);
    Builder::from_config(config)
        .set_performance_config(PerformanceConfig {
            default_command_timeout: command_timeout,
            broadcast_channel_capacity: MAX_WAITING_MESSAGES,
            ..PerformanceConfig::default()
        })
        .set_connection_config(ConnectionConfig {
            connection_timeout: CONNECT_TIMEOUT,
            internal_command_timeout: CONNECT_TIMEOUT,
            max_command_attempts: 1,
            max_command_buffer_len: MAX_WAITING_COMMANDS,
            unresponsive: UnresponsiveConfig {
                max_timeout: Some(UNRESPONSIVE_AFTER),
                interval: UNRESPONSIVE_CHECK,
            },
            // A password that was changed here before it was changed there.
            reconnect_on_auth_error: true,
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        })
        .set_policy(policy)
        .build()
        .map_err(|error| RedisError::Url(error.details().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> RedisOptions {
        let limits = CacheLimits { max_bytes: 0, ttl: CONNECT_TIMEOUT, empty_ttl: CONNECT_TIMEOUT };
        RedisOptions {
            url: url.to_owned(),
            user: "sextant".to_owned(),
            password: Some("hunter2".to_owned()),
            ca_file: None,
            prefix: "sextant".to_owned(),
            timeout: Duration::from_millis(20),
            results: limits,
            embeddings: limits,
            max_stale: Duration::ZERO,
        }
    }

    #[test]
    fn every_form_of_address_is_understood() {
        for url in [
            "redis://host",
            "rediss://host:6380",
            "redis-cluster://host:6379?node=other:6379",
            "redis-sentinel://host:26379?sentinelServiceName=main",
        ] {
            assert!(config(&options(url)).is_ok(), "{url}");
        }
        assert!(config(&options("http:/")).is_err());
    }

    #[test]
    fn no_password_is_told() {
        let options = options("redis://user:hunter3@host:6379/0");
        let told = format!("{options:?}");
        assert!(told.contains("host:6379") && !told.contains("hunter"), "{told}");
    }
}
