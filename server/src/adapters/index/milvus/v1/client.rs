//! The library's first client of one server.
//!
//! It knows of no limits to a connection or a wait, and of errors only their older codes: the
//! reasons in words tell what the newer codes would.

use std::io;

use milvus::proto::common::ErrorCode;
use milvus::v1::client::{Client as ClientV1, ConsistencyLevel};
use milvus::v1::error::Error;
use milvus::v1::options::LoadOptions;
use tokio::time::timeout;

use crate::adapters::index::milvus::client::{
    Client, LOST_ANOTHER, is_replica_number_fixed, is_too_large_status, is_unavailable_status,
};
use crate::adapters::index::milvus::{Consistency, MilvusOptions};

/// What a server says of a part of it that is away for the moment.
const UNAVAILABLE: [&str; 14] = [
    LOST_ANOTHER,
    "failed to connect",
    "node not match",
    "not ready",
    "unavailable",
    "not available",
    "no available",
    "not fully loaded",
    "segment not loaded",
    "node offline",
    "node not found",
    "deadline exceeded",
    "too many",
    "not enough",
];
/// What it says of an expression, which it repeats, and with it words that a person typed.
const REFUSED: &str = "cannot parse expression";
/// The second is that of servers before 2.3.
const NOT_LOADED: [&str; 2] = ["collection not loaded", "not loaded into memory"];

impl Client for ClientV1 {
    type Error = Error;

    async fn connect(endpoint: &str, options: &MilvusOptions) -> Result<Self, Error> {
        let named = !options.user.is_empty();
        let user = named.then(|| options.user.clone());
        let password = named.then(|| options.password.clone());
        let connect = Self::with_timeout(endpoint.to_owned(), options.timeout, user, password);
        timeout(options.connect_timeout, connect)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// Waits without an end of its own; the call that this is part of has one.
    async fn load(self, collection: String, options: &MilvusOptions) -> Result<(), Error> {
        let replicas = LoadOptions::with_replica_number(i32::from(options.replica_number));
        match self.load_collection(collection, Some(replicas)).await {
            Err(error) if is_replica_number_fixed(&error) => Ok(()),
            loaded => loaded,
        }
    }

    async fn health(self) -> Result<(), Error> {
        self.has_collection("health".to_owned()).await.map(drop)
    }

    fn is_unavailable(error: &Error) -> bool {
        match error {
            Error::Communication(_) | Error::Io(_) => true,
            Error::Grpc(status) => is_unavailable_status(status.code() as i32),
            Error::Server(ErrorCode::UnexpectedError, reason) => {
                !reason.contains(REFUSED) && UNAVAILABLE.iter().any(|words| reason.contains(words))
            }
            Error::Server(code, _) => matches!(
                code,
                ErrorCode::ConnectFailed
                    | ErrorCode::OutOfMemory
                    | ErrorCode::NotShardLeader
                    | ErrorCode::NoReplicaAvailable
                    | ErrorCode::SegmentNotFound
                    | ErrorCode::ForceDeny
                    | ErrorCode::RateLimit
                    | ErrorCode::NodeIdNotMatch
                    | ErrorCode::InsufficientMemoryToLoad
                    | ErrorCode::MemoryQuotaExhausted
                    | ErrorCode::DiskQuotaExhausted
                    | ErrorCode::TimeTickLongDelay
                    | ErrorCode::NotReadyServe
                    | ErrorCode::NotReadyCoordActivating
            ),
            _ => false,
        }
    }

    fn is_answer(error: &Error) -> bool {
        matches!(error, Error::Server(..))
    }

    fn is_not_loaded(error: &Error) -> bool {
        let Error::Server(_, reason) = error else { return false };
        NOT_LOADED.iter().any(|words| reason.contains(words))
    }

    fn is_too_large(error: &Error) -> bool {
        matches!(error, Error::Grpc(status) if is_too_large_status(status.code() as i32))
    }
}

/// A consistency as the client takes it.
pub fn level(consistency: Consistency) -> i32 {
    let level = match consistency {
        Consistency::Strong => ConsistencyLevel::Strong,
        Consistency::Bounded => ConsistencyLevel::Bounded,
    };
    level as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_code_and_words() {
        let error = |code, reason: &str| Error::Server(code, reason.to_owned());
        let not_loaded = error(
            ErrorCode::UnexpectedError,
            "failed to search: collection not loaded[collection=4706]",
        );
        assert!(ClientV1::is_not_loaded(&not_loaded) && !ClientV1::is_unavailable(&not_loaded));
        for away in [
            error(ErrorCode::UnexpectedError, "service not ready[proxy=1]: state is Abnormal"),
            error(ErrorCode::UnexpectedError, "fail to search: channel not available[channel=c]"),
            error(
                ErrorCode::UnexpectedError,
                "empty grpc client: failed to connect 10.0.0.1:21123",
            ),
            error(
                ErrorCode::UnexpectedError,
                "attempt #2: rpc error: code = Canceled desc = grpc: the client connection is closing",
            ),
            error(ErrorCode::UnexpectedError, "node not match[expectedNodeID=7][actualNodeID=9]"),
            error(ErrorCode::NotReadyServe, ""),
            error(ErrorCode::RateLimit, ""),
            Error::Io(io::ErrorKind::TimedOut.into()),
        ] {
            assert!(ClientV1::is_unavailable(&away) && !ClientV1::is_not_loaded(&away), "{away}");
        }
        for refused in [
            error(ErrorCode::UnexpectedError, "cannot parse expression: id == \"not ready"),
            error(ErrorCode::CollectionNotExists, "collection not found[collection=a]"),
            error(ErrorCode::IllegalArgument, "invalid"),
        ] {
            assert!(!ClientV1::is_unavailable(&refused), "{refused}");
            assert!(!ClientV1::is_not_loaded(&refused), "{refused}");
        }
    }
}
