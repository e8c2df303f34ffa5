//! Why a reconciliation did not reach its end.

use crate::components::Kind;
use crate::patroni::PatroniError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to apply {} {name}", kind.as_str())]
    ApplyObject { kind: Kind, name: String, source: Box<kube::Error> },
    #[error("failed to delete {} {name}", kind.as_str())]
    DeleteObject { kind: Kind, name: String, source: Box<kube::Error> },
    #[error("failed to grow the volumes of StatefulSet {name}")]
    GrowVolumes { name: String, source: Box<kube::Error> },
    #[error("failed to read Secret {name}")]
    ReadSecret { name: String, source: Box<kube::Error> },
    #[error("failed to make a certificate")]
    MakeCertificate { source: rcgen::Error },
    #[error("failed to write the status")]
    WriteStatus { source: Box<kube::Error> },
    #[error("failed to change the finalizer")]
    ChangeFinalizer { source: Box<kube::Error> },
    #[error("failed to replace the pod {name}")]
    ReplacePod { name: String, source: Box<kube::Error> },
    #[error("failed to let another pod make the Postgres cluster: Endpoints {name}")]
    BeginAgain { name: String, source: Box<kube::Error> },
    #[error("failed to change Postgres")]
    Patroni { source: Box<PatroniError> },
    #[error("failed to clean up after the SearchDeployment")]
    CleanUp { source: Box<kube::Error> },
}

impl Error {
    /// For events, conditions and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ApplyObject { .. } => "ApplyObjectFailed",
            Self::DeleteObject { .. } => "DeleteObjectFailed",
            Self::GrowVolumes { .. } => "GrowVolumesFailed",
            Self::ReadSecret { .. } => "ReadSecretFailed",
            Self::MakeCertificate { .. } => "MakeCertificateFailed",
            Self::WriteStatus { .. } => "WriteStatusFailed",
            Self::ChangeFinalizer { .. } => "ChangeFinalizerFailed",
            Self::ReplacePod { .. } => "ReplacePodFailed",
            Self::BeginAgain { .. } => "BeginAgainFailed",
            Self::Patroni { .. } => "PatroniFailed",
            Self::CleanUp { .. } => "CleanUpFailed",
        }
    }

    /// With what it comes from.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            // kube's own message repeats its source.
            let message = match error.downcast_ref::<Box<kube::Error>>().map(AsRef::as_ref) {
                Some(kube::Error::Api(status)) => status.message.clone(),
                _ => error.to_string(),
            };
            text = format!("{text}: {message}");
            source = error.source().filter(|_| error.downcast_ref::<Box<kube::Error>>().is_none());
        }
        text
    }
}

/// `None` when the object is not there any more.
///
/// # Errors
/// What else the API server says.
pub fn unless_gone<T>(answer: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}
