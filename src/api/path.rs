//! Keys in paths and the percent-encoding of queries, read from the raw bytes.
//!
//! Guarantees: nothing is normalised: `//`, `.`, `..`, case and `%2F` are the key's own bytes (CVE-2024-10005 was a
//! path normalised after it had been checked); a `%` without two hexadecimal digits is an error. Leaves out: which
//! endpoint a path names (`routes`).

use std::borrow::Cow;

use bytes::Bytes;

use super::model::Invalid;
use crate::types::Key;

/// What stands before a key in a path.
pub(super) const KEY_PREFIX: &str = "/v1/kv/";

/// A `%` that is not followed by two hexadecimal digits, at this byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadEscape(pub(super) usize);

/// Decodes percent-encoding; in queries `+` is a space.
pub(super) fn decode(raw: &[u8], plus_is_space: bool) -> Result<Cow<'_, [u8]>, BadEscape> {
    let special = |byte: &u8| *byte == b'%' || (plus_is_space && *byte == b'+');
    let Some(first) = raw.iter().position(special) else { return Ok(Cow::Borrowed(raw)) };
    let mut out = Vec::with_capacity(raw.len());
    out.extend_from_slice(&raw[..first]);
    let mut at = first;
    while let Some(&byte) = raw.get(at) {
        match byte {
            b'%' => {
                let digit = |offset: usize| raw.get(at + offset).and_then(|digit| char::from(*digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(1), digit(2)) else { return Err(BadEscape(at)) };
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            b'+' if plus_is_space => {
                out.push(b' ');
                at += 1;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Ok(Cow::Owned(out))
}

/// The key that a path under [`KEY_PREFIX`] names.
pub(super) fn key_of(path: &str) -> Result<Key, Invalid> {
    let raw = path.strip_prefix(KEY_PREFIX).unwrap_or_default();
    let bytes = match decode(raw.as_bytes(), false) {
        Ok(Cow::Borrowed(bytes)) => Bytes::copy_from_slice(bytes),
        Ok(Cow::Owned(bytes)) => Bytes::from(bytes),
        Err(BadEscape(at)) => {
            let detail =
                format!("the key is badly percent-encoded at byte {at}: % needs two hexadecimal digits behind it");
            return Err(Invalid::key(detail));
        }
    };
    Key::new(bytes).map_err(Invalid::key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::Code;
    use super::*;

    fn key(path: &str) -> Result<Vec<u8>, Code> {
        key_of(&format!("{KEY_PREFIX}{path}")).map(|key| key.as_bytes().to_vec()).map_err(|invalid| invalid.code)
    }

    #[test]
    fn a_path_is_the_key_byte_by_byte() {
        let cases: [(&str, &[u8]); 10] = [
            ("a", b"a"),
            ("a/b/c", b"a/b/c"),
            ("a%2Fb", b"a/b"),
            ("/", b"/"),
            ("a//b", b"a//b"),
            ("a/../b/./c", b"a/../b/./c"),
            ("%2e%2E", b".."),
            ("%ff%00", b"\xFF\0"),
            ("a+b", b"a+b"),
            ("%25%32%46", b"%2F"),
        ];
        for (path, expected) in cases {
            assert_eq!(key(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn bad_keys_are_refused() {
        for path in ["", "%", "%2", "a%zz", "%+1", &"x".repeat(4097)] {
            assert_eq!(key(path), Err(Code::InvalidKey), "{path}");
        }
        assert!(key(&"x".repeat(4096)).is_ok());
        assert!(key(&"%78".repeat(4096)).is_ok());
    }

    proptest! {
        #[test]
        fn any_key_comes_back_from_its_encoding(bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            let all = percent_encoding::percent_encode(&bytes, percent_encoding::NON_ALPHANUMERIC).to_string();
            prop_assert_eq!(key(&all), Ok(bytes));
        }

        #[test]
        fn no_path_makes_it_panic(path in "\\PC*") {
            let _ = key(&path);
        }
    }
}
