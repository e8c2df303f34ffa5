//! API keys: who may do what. A key is 256 random bits, so one round of SHA-256 hides it; the file
//! holds hashes only and is read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::AuthConfig;
use crate::strict;

/// What every key begins with, so that people and secret scanners know one when they see it.
const KEY_PREFIX: &str = "sxt_";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Search, read documents, embed.
    Read,
    /// Write documents and collections.
    Write,
    /// Invalidate caches.
    Admin,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    pub name: String,
    /// SHA-256 of the key, as 64 hex digits.
    pub sha256: String,
    pub scopes: Vec<Scope>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    #[serde(default)]
    pub keys: Vec<KeyEntry>,
}

/// Who calls. While it lives the call counts as under way.
#[derive(Debug)]
pub struct Caller {
    /// Name of the key; `None` on a server without keys.
    pub name: Option<Arc<str>>,
    _place: Option<Place>,
}

/// One of the calls that a key may have under way.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot read the API keys in {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a file of API keys: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No key or an unknown one.
    Unauthenticated,
    /// The key has not this scope.
    Missing(Scope),
    /// The key has as many calls under way as it may.
    TooMany,
}

struct Key {
    name: Arc<str>,
    hash: [u8; 32],
    scopes: Vec<Scope>,
    under_way: Arc<AtomicUsize>,
}

/// The keys of a server; without a file everybody may do everything.
pub struct Keys {
    file: Option<PathBuf>,
    /// Calls that a key may have under way.
    max_calls: usize,
    loaded: RwLock<Loaded>,
}

#[derive(Default)]
struct Loaded {
    keys: Vec<Key>,
    version: Option<FileVersion>,
}

type FileVersion = (SystemTime, u64);

impl Keys {
    pub fn open(config: &AuthConfig) -> Result<Self, KeysError> {
        let file = config.keys_file.clone();
        let keys = Self { file, max_calls: config.max_requests_per_key, loaded: RwLock::default() };
        keys.reload_if_changed()?;
        Ok(keys)
    }

    /// Whether callers need a key.
    pub fn required(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the file again when it has changed; the old keys stay when it cannot be read.
    pub fn reload_if_changed(&self) -> Result<bool, KeysError> {
        let Some(path) = &self.file else { return Ok(false) };
        let version = version(path)?;
        let unchanged = {
            let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
            loaded.version == Some(version)
        };
        if unchanged {
            return Ok(false);
        }
        let keys = parse(&read(path)?, path)?;
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        *loaded = Loaded { keys, version: Some(version) };
        Ok(true)
    }

    /// Whether the bearer of a key may do what `scope` allows.
    pub fn authorize(&self, key: Option<&str>, scope: Scope) -> Result<Caller, Denied> {
        if !self.required() {
            return Ok(Caller { name: None, _place: None });
        }
        let hash: [u8; 32] = Sha256::digest(key.ok_or(Denied::Unauthenticated)?).into();
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        // Every key is compared, each in constant time: the time tells nothing about which is near.
        let mut found = None;
        for key in &loaded.keys {
            if bool::from(key.hash.ct_eq(&hash)) {
                found = Some(key);
            }
        }
        let found = found.ok_or(Denied::Unauthenticated)?;
        if !found.scopes.contains(&scope) {
            return Err(Denied::Missing(scope));
        }
        let place = Place::take(&found.under_way, self.max_calls).ok_or(Denied::TooMany)?;
        Ok(Caller { name: Some(Arc::clone(&found.name)), _place: Some(place) })
    }
}

fn version(path: &Path) -> Result<FileVersion, KeysError> {
    let metadata = std::fs::metadata(path).map_err(|source| read_error(path, source))?;
    let modified = metadata.modified().map_err(|source| read_error(path, source))?;
    Ok((modified, metadata.len()))
}

fn read_error(path: &Path, source: std::io::Error) -> KeysError {
    KeysError::Read { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<KeyFile, KeysError> {
    let text = std::fs::read_to_string(path).map_err(|source| read_error(path, source))?;
    let invalid = |reason: String| KeysError::Invalid { path: path.to_owned(), reason };
    let tree = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    strict::from_value(tree).map_err(|fault| invalid(fault.to_string()))
}

fn parse(file: &KeyFile, path: &Path) -> Result<Vec<Key>, KeysError> {
    let invalid = |reason: String| KeysError::Invalid { path: path.to_owned(), reason };
    file.keys
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            let hash = decode_hex(&entry.sha256).ok_or_else(|| {
                invalid(format!("`keys[{i}].sha256` must be 64 hex digits, not the key itself"))
            })?;
            Ok(Key {
                name: entry.name.as_str().into(),
                hash,
                scopes: entry.scopes.clone(),
                under_way: Arc::default(),
            })
        })
        .collect()
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0_u8; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

fn encode_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// Makes a key: the key itself, to be shown once, and the entry for the file.
pub fn generate(name: &str, scopes: &[Scope]) -> (String, KeyEntry) {
    let secret: [u8; 32] = rand::random();
    let key = format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
    let sha256 = encode_hex(&Sha256::digest(&key));
    (key, KeyEntry { name: name.to_owned(), sha256, scopes: scopes.to_vec() })
}

/// Adds an entry to a file of keys, made when it does not exist, readable by its owner alone.
pub fn add_to_file(path: &Path, entry: KeyEntry) -> Result<(), KeysError> {
    let mut file = if path.exists() { read(path)? } else { KeyFile::default() };
    if file.keys.iter().any(|present| present.name == entry.name) {
        let reason = format!("it has a key named {:?} already", entry.name);
        return Err(KeysError::Invalid { path: path.to_owned(), reason });
    }
    file.keys.push(entry);
    let text = serde_saphyr::to_string(&file)
        .map_err(|error| KeysError::Invalid { path: path.to_owned(), reason: error.to_string() })?;
    write_private(path, &text).map_err(|source| read_error(path, source))
}

/// Replaces a file at once, so that a server that reads it now sees the old or the new one.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: PathBuf) -> Keys {
        Keys::open(&AuthConfig { keys_file: Some(path), ..AuthConfig::default() }).unwrap()
    }

    #[test]
    fn a_key_has_so_many_calls_under_way_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let (key, entry) = generate("web", &[Scope::Read]);
        add_to_file(&path, entry).unwrap();
        let config =
            AuthConfig { keys_file: Some(path), max_requests_per_key: 2, ..AuthConfig::default() };
        let keys = Keys::open(&config).unwrap();
        let call = || keys.authorize(Some(&key), Scope::Read);
        let (first, _second) = (call().unwrap(), call().unwrap());
        assert_eq!(call().unwrap_err(), Denied::TooMany);
        drop(first);
        assert!(call().is_ok());
    }

    #[test]
    fn a_key_opens_its_scopes_only_and_the_file_does_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let (key, entry) = generate("web", &[Scope::Read]);
        add_to_file(&path, entry).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&key));

        let keys = open(path);
        assert_eq!(keys.authorize(Some(&key), Scope::Read).unwrap().name.as_deref(), Some("web"));
        let denied = |key: Option<&str>, scope| keys.authorize(key, scope).unwrap_err();
        assert_eq!(denied(Some(&key), Scope::Write), Denied::Missing(Scope::Write));
        assert_eq!(denied(Some("sxt_guess"), Scope::Read), Denied::Unauthenticated);
        assert_eq!(denied(None, Scope::Read), Denied::Unauthenticated);
    }

    #[test]
    fn keys_are_reloaded_and_a_broken_file_leaves_the_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let (first, entry) = generate("first", &[Scope::Read]);
        add_to_file(&path, entry).unwrap();
        let keys = open(path.clone());
        let (second, entry) = generate("second", &[Scope::Admin]);
        add_to_file(&path, entry).unwrap();
        assert!(keys.reload_if_changed().unwrap());
        assert!(keys.authorize(Some(&second), Scope::Admin).is_ok());

        std::fs::write(&path, "keys: [{name: x, sha256: plain-secret, scopes: [read]}]").unwrap();
        let error = keys.reload_if_changed().unwrap_err().to_string();
        assert!(error.contains("keys[0].sha256") && !error.contains("plain-secret"), "{error}");
        assert!(keys.authorize(Some(&first), Scope::Read).is_ok());
    }

    #[test]
    fn two_keys_of_one_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        add_to_file(&path, generate("web", &[Scope::Read]).1).unwrap();
        assert!(add_to_file(&path, generate("web", &[Scope::Read]).1).is_err());
    }
}
