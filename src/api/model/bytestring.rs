//! Byte strings in JSON: under their own name where they are UTF-8, as base64 under `<name>_base64` otherwise.
//!
//! Guarantees: what [`put`] writes, [`take`] reads back to the same bytes; both names present, or neither where one is
//! needed, is an error that says so. Leaves out: which fields there are (the types beside this file).

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::ser::SerializeStruct;

use crate::types::limits::JSON_INTEGER_MAX;

/// Base64 with the standard alphabet (RFC 4648 §4); padding is written, and may be missing in what is read.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The two names of a byte string.
#[derive(Clone, Copy)]
pub(super) struct Name {
    plain: &'static str,
    base64: &'static str,
}

pub(super) const KEY: Name = Name { plain: "key", base64: "key_base64" };
pub(super) const VALUE: Name = Name { plain: "value", base64: "value_base64" };
pub(super) const PREFIX: Name = Name { plain: "prefix", base64: "prefix_base64" };
pub(super) const START: Name = Name { plain: "start", base64: "start_base64" };
pub(super) const END: Name = Name { plain: "end", base64: "end_base64" };

/// Writes the bytes under the name that suits them, without a copy where they are UTF-8.
pub(super) fn put<S: SerializeStruct>(out: &mut S, name: Name, bytes: &[u8]) -> Result<(), S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.skip_field(name.base64)?;
            out.serialize_field(name.plain, text)
        }
        Err(_) => {
            out.skip_field(name.plain)?;
            out.serialize_field(name.base64, &BASE64.encode(bytes))
        }
    }
}

/// The bytes that were sent under either name, if any.
pub(super) fn take(name: Name, plain: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (plain, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(Bytes::from(text))),
        (None, Some(text)) => match BASE64.decode(&text) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) => Err(format!("`{}` is not base64 of the standard alphabet: {error}", name.base64)),
        },
        (Some(_), Some(_)) => Err(format!("both `{}` and `{}` are given; give one of them", name.plain, name.base64)),
    }
}

/// The bytes that were sent under either name; one must be there.
pub(super) fn need(name: Name, plain: Option<String>, base64: Option<String>) -> Result<Bytes, String> {
    take(name, plain, base64)?
        .ok_or_else(|| format!("`{}` is missing; give it, or `{}` where it is not UTF-8", name.plain, name.base64))
}

/// Checks that a number can stand in JSON.
pub(super) fn json_integer<E: serde::de::Error>(value: u64) -> Result<u64, E> {
    if value > JSON_INTEGER_MAX {
        return Err(E::invalid_value(Unexpected::Unsigned(value), &"a whole number from 0 to 9007199254740991"));
    }
    Ok(value)
}

/// Reads a number of a request: whole, not negative, below 2^53.
pub(super) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    struct Whole;
    impl Visitor<'_> for Whole {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a whole number from 0 to 9007199254740991")
        }

        fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<u64, E> {
            json_integer(value)
        }
    }
    from.deserialize_u64(Whole)
}

/// The same for a number that may be left out.
pub(super) fn number_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match number(from) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(D::Error::custom(error)),
    }
}
