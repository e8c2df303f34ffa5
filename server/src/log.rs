//! Logs, to standard error: as text or JSON, at a level that can be changed while the process runs.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{LogConfig, LogFormat};

/// The target of what is logged of calls that need the scope admin, whatever the level.
pub const AUDIT: &str = "audit";

/// Set by [`start`].
static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    filter: reload::Handle<EnvFilter, Registry>,
    level: Mutex<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("invalid `log.level`: {0}")]
    Level(String),
    #[error("this process logs already: {0}")]
    Started(#[from] TryInitError),
    #[error("this process does not log")]
    NotStarted,
}

/// Begins to log.
///
/// # Errors
/// When the level cannot be read, or the process logs already.
pub fn start(config: &LogConfig) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let lines =
        fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    let level = Mutex::new(config.level.clone());
    let _ = CONTROL.set(Control { filter: handle, level }); // the first one alone gets here
    Ok(())
}

/// What is logged of a level: `error`, `warn`, `info`, `debug`, `trace`, or per module.
///
/// # Errors
/// When it cannot be read.
pub fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let told = |error: tracing_subscriber::filter::ParseError| LogError::Level(error.to_string());
    let audit = format!("{AUDIT}=info").parse().map_err(told)?;
    let wrong = |error: tracing_subscriber::filter::ParseError| {
        LogError::Level(format!("{level:?} is no level: {error}"))
    };
    Ok(EnvFilter::try_new(level).map_err(wrong)?.add_directive(audit))
}

/// The level now.
pub fn level() -> Result<String, LogError> {
    let control = CONTROL.get().ok_or(LogError::NotStarted)?;
    Ok(control.level.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Logs by another level from now on.
pub fn set_level(level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    let control = CONTROL.get().ok_or(LogError::NotStarted)?;
    let mut now = control.level.lock().unwrap_or_else(PoisonError::into_inner);
    control.filter.reload(filter).map_err(|error| LogError::Level(error.to_string()))?;
    level.clone_into(&mut now);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_word_or_one_for_each_module() {
        for level in ["error", "info", "info,sextant_server::search=debug", "off"] {
            assert!(filter(level).unwrap().to_string().contains("audit=info"), "{level}");
        }
        for wrong in ["info,x=loud", "a=b=c"] {
            assert!(filter(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
