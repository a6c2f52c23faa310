//! Keys and key ranges, valid by construction.
//!
//! Guarantees: a [`Key`] has 1 to [`KEY_BYTES_MAX`] bytes; a [`KeyRange`] is never empty. Decoding from a log or a file
//! goes through the same checks. Leaves out: how they are written in URLs or JSON (`api/`) or on disk (`codec`).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::limits::KEY_BYTES_MAX;

/// A key: 1 to 4,096 bytes, ordered bytewise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Key(Bytes);

/// Why some bytes are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// No bytes at all.
    #[error("the key is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    /// Too many bytes.
    #[error("the key has {0} bytes; a key has 1 to {KEY_BYTES_MAX} bytes")]
    TooLong(usize),
}

/// Why two bounds are no range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// `start` is not below `end`.
    #[error("the range is empty: start must sort before end (end is exclusive)")]
    Empty,
    /// A bound is longer than any key.
    #[error("a bound of the range has {0} bytes; at most {KEY_BYTES_MAX} are allowed")]
    TooLong(usize),
}

impl Key {
    /// Takes the bytes as a key.
    ///
    /// # Errors
    /// [`InvalidKey`] if there are none or more than [`KEY_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, InvalidKey> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(InvalidKey::Empty),
            1..=KEY_BYTES_MAX => Ok(Self(bytes)),
            len => Err(InvalidKey::TooLong(len)),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes, giving the key up.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl TryFrom<Bytes> for Key {
    type Error = InvalidKey;

    fn try_from(bytes: Bytes) -> Result<Self, InvalidKey> {
        Self::new(bytes)
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// A half-open range of keys, never empty: `start` inclusive, `end` exclusive or open.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(Bytes, Option<Bytes>)", into = "(Bytes, Option<Bytes>)")]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

impl KeyRange {
    /// From `start` up to, not including, `end`; `None` is the end of the key space. An empty `start` is its beginning.
    ///
    /// # Errors
    /// [`InvalidRange`] if the range is empty or a bound is too long for a key.
    pub fn new(start: impl Into<Bytes>, end: Option<Bytes>) -> Result<Self, InvalidRange> {
        let start = start.into();
        // One more byte than a key is fine in a bound: it is how "just behind this key" is written.
        for len in [start.len(), end.as_ref().map_or(0, Bytes::len)] {
            if len > KEY_BYTES_MAX + 1 {
                return Err(InvalidRange::TooLong(len));
            }
        }
        if end.as_ref().is_some_and(|end| *end <= start) {
            return Err(InvalidRange::Empty);
        }
        Ok(Self { start, end })
    }

    /// All keys that begin with `prefix`; the empty prefix is every key.
    ///
    /// # Errors
    /// [`InvalidRange::TooLong`] if no key is that long.
    pub fn prefix(prefix: impl Into<Bytes>) -> Result<Self, InvalidRange> {
        let start = prefix.into();
        // The first key behind the prefix: drop trailing 0xFF bytes, then add one to the last that is left.
        let end = start.iter().rposition(|byte| *byte != 0xFF).map(|last| {
            let mut end = BytesMut::from(&start[..=last]);
            end[last] += 1;
            end.freeze()
        });
        Self::new(start, end)
    }

    /// Every key.
    #[must_use]
    pub const fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// Just this key.
    #[must_use]
    pub fn single(key: &Key) -> Self {
        let mut end = BytesMut::with_capacity(key.0.len() + 1);
        end.put_slice(&key.0);
        end.put_u8(0);
        Self { start: key.0.clone(), end: Some(end.freeze()) }
    }

    /// The inclusive lower bound.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// The exclusive upper bound; `None` is the end of the key space.
    #[must_use]
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// Whether the key lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"..", self.start.escape_ascii())?;
        self.end.as_ref().map_or(Ok(()), |end| write!(f, "\"{}\"", end.escape_ascii()))
    }
}

impl TryFrom<(Bytes, Option<Bytes>)> for KeyRange {
    type Error = InvalidRange;

    fn try_from((start, end): (Bytes, Option<Bytes>)) -> Result<Self, InvalidRange> {
        Self::new(start, end)
    }
}

impl From<KeyRange> for (Bytes, Option<Bytes>) {
    fn from(range: KeyRange) -> Self {
        (range.start, range.end)
    }
}

/// What a read or a delete is about: one key, or all keys of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// One key.
    Key(Key),
    /// Every key of the range.
    Range(KeyRange),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_to_max_bytes() {
        assert_eq!(Key::new(""), Err(InvalidKey::Empty));
        assert!(Key::new(vec![0; KEY_BYTES_MAX]).is_ok());
        assert_eq!(Key::new(vec![0; KEY_BYTES_MAX + 1]), Err(InvalidKey::TooLong(KEY_BYTES_MAX + 1)));
    }

    #[test]
    fn a_prefix_range_ends_right_behind_the_last_key_with_it() {
        let end = |prefix: &'static [u8]| KeyRange::prefix(prefix).unwrap().end().cloned();
        assert_eq!(end(b"a"), Some(Bytes::from_static(b"b")));
        assert_eq!(end(b"a\xFF"), Some(Bytes::from_static(b"b")));
        assert_eq!(end(b"\xFF\xFF"), None);
        assert_eq!(end(b""), None);
    }

    #[test]
    fn a_range_without_keys_is_refused() {
        let range = |start: &'static str, end: &'static str| KeyRange::new(start, Some(Bytes::from(end)));
        assert_eq!(range("b", "a"), Err(InvalidRange::Empty));
        assert_eq!(range("a", "a"), Err(InvalidRange::Empty));
        assert!(range("a", "a\0").unwrap().contains(b"a"));
    }

    #[test]
    fn decoding_checks_what_construction_checks() {
        let bytes = postcard::to_stdvec(&Bytes::new()).unwrap();
        assert!(postcard::from_bytes::<Key>(&bytes).is_err());
        let bytes = postcard::to_stdvec(&(Bytes::from("b"), Some(Bytes::from("a")))).unwrap();
        assert!(postcard::from_bytes::<KeyRange>(&bytes).is_err());
    }
}
