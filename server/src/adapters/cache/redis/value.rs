//! How values are written: version, checksum, header, payload; little-endian. What another version
//! wrote, or what was damaged, is not read.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::cache::shared::SharedAnswer;
use crate::ports::Embedding;

/// Raised with every change of a form below.
const VERSION: u8 = 1;
/// Version and checksum.
const ENVELOPE: usize = 5;
const RESULT_HEADER: usize = ENVELOPE + 28;
const EMBEDDING_HEADER: usize = ENVELOPE + 17;

/// The value is of another version or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// A search's answer as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultValue {
    /// Milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
    /// Afterwards it is stale. Servers' clocks are taken to differ by less than matters here.
    pub fresh_for: Duration,
    /// [`crate::cache::shared::Stamps::result`] when it was computed.
    pub stamps: u64,
    pub hits: usize,
    pub json: Bytes,
}

impl ResultValue {
    pub fn encode(&self) -> Bytes {
        let mut bytes = envelope(RESULT_HEADER + self.json.len());
        bytes.put_u64_le(self.made_ms);
        bytes.put_u64_le(u64::try_from(self.fresh_for.as_millis()).unwrap_or(u64::MAX));
        bytes.put_u64_le(self.stamps);
        bytes.put_u32_le(u32::try_from(self.hits).unwrap_or(u32::MAX));
        bytes.put_slice(&self.json);
        seal(bytes)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let body = open(bytes, RESULT_HEADER)?;
        Ok(Self {
            made_ms: u64::from_le_bytes(part(body, 0)),
            fresh_for: Duration::from_millis(u64::from_le_bytes(part(body, 8))),
            stamps: u64::from_le_bytes(part(body, 16)),
            hits: u32::from_le_bytes(part(body, 24)) as usize,
            // A copy: the buffer that it was read into is larger, and would be held with it.
            json: Bytes::copy_from_slice(&body[28..]),
        })
    }

    pub fn age(&self, now_ms: u64) -> Duration {
        Duration::from_millis(now_ms.saturating_sub(self.made_ms))
    }

    pub fn into_answer(self, now_ms: u64) -> SharedAnswer {
        SharedAnswer { age: self.age(now_ms), json: self.json, hits: self.hits }
    }
}

/// The embedding, with [`crate::cache::shared::Stamps::all`] of when it was computed.
pub fn encode_embedding(embedding: &Embedding, stamp: u64) -> Bytes {
    let mut bytes = envelope(EMBEDDING_HEADER + 4 * embedding.vector.len());
    bytes.put_u64_le(stamp);
    bytes.put_u64_le(embedding.tokens as u64);
    bytes.put_u8(u8::from(embedding.truncated));
    for number in embedding.vector.iter() {
        bytes.put_f32_le(*number);
    }
    seal(bytes)
}

pub fn decode_embedding(bytes: &[u8]) -> Result<(Embedding, u64), Unreadable> {
    let body = open(bytes, EMBEDDING_HEADER)?;
    let (numbers, rest) = body[17..].as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Unreadable);
    }
    let vector: Arc<[f32]> = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
    let tokens = u64::from_le_bytes(part(body, 8)) as usize;
    let stamp = u64::from_le_bytes(part(body, 0));
    Ok((Embedding { vector, tokens, truncated: body[16] != 0 }, stamp))
}

fn envelope(capacity: usize) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(capacity);
    bytes.put_u8(VERSION);
    bytes.put_u32_le(0);
    bytes
}

fn seal(mut bytes: BytesMut) -> Bytes {
    let checksum = crc32fast::hash(&bytes[ENVELOPE..]);
    bytes[1..ENVELOPE].copy_from_slice(&checksum.to_le_bytes());
    bytes.freeze()
}

/// What is inside the envelope.
fn open(bytes: &[u8], least: usize) -> Result<&[u8], Unreadable> {
    if bytes.len() < least || bytes[0] != VERSION {
        return Err(Unreadable);
    }
    let body = &bytes[ENVELOPE..];
    let checksum = u32::from_le_bytes(part(bytes, 1));
    if crc32fast::hash(body) == checksum { Ok(body) } else { Err(Unreadable) }
}

fn part<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[from + i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_result_survives_its_encoding(
            made_ms: u64, fresh_ms: u64, stamps: u64, hits: u32, json: Vec<u8>,
        ) {
            let fresh_for = Duration::from_millis(fresh_ms);
            let hits = hits as usize;
            let value = ResultValue { made_ms, fresh_for, stamps, hits, json: json.into() };
            prop_assert_eq!(ResultValue::decode(&value.encode()), Ok(value));
        }

        #[test]
        fn an_embedding_survives_its_encoding(
            vector in prop::collection::vec(-1.0_f32..1.0, 0..40), tokens: u32, truncated: bool,
            stamp: u64,
        ) {
            let embedding = Embedding { vector: vector.into(), tokens: tokens as usize, truncated };
            let bytes = encode_embedding(&embedding, stamp);
            prop_assert_eq!(decode_embedding(&bytes), Ok((embedding, stamp)));
        }

        #[test]
        fn what_is_damaged_or_foreign_is_not_read(
            json in "[a-z]{0,20}", place: prop::sample::Index, flip in 1_u8.., noise: Vec<u8>,
        ) {
            let value = ResultValue {
                made_ms: 1, fresh_for: Duration::ZERO, stamps: 2, hits: 3, json: json.into(),
            };
            let mut bytes = value.encode().to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            prop_assert_eq!(ResultValue::decode(&bytes), Err(Unreadable));
            prop_assert_eq!(ResultValue::decode(&bytes[..place]), Err(Unreadable));
            prop_assert_eq!(decode_embedding(&bytes), Err(Unreadable));
            prop_assert!(ResultValue::decode(&noise).is_err());
        }
    }
}
