//! Order-preserving encoding of byte strings inside composite keys.
//!
//! `0x00` becomes `0x00 0xFF` and the string ends with `0x00 0x00`, so that encoded strings sort as the plain ones do and
//! none is a prefix of another (the scheme of FoundationDB's tuple layer). Integers are big-endian.
//!
//! Guarantees: `encode(a) < encode(b)` exactly if `a < b`, whatever follows. Leaves out: types; the caller knows the order
//! of its parts.

/// Why bytes are no encoded key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed ordered key")]
pub struct Malformed;

/// Appends a byte string, escaped and terminated.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 2);
    for &byte in bytes {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

/// Appends the escaped form without a terminator: the start of every string that begins with `bytes`.
pub fn put_bytes_open(out: &mut Vec<u8>, bytes: &[u8]) {
    put_bytes(out, bytes);
    out.truncate(out.len() - 2);
}

/// Reads one byte string; returns it and what stands behind it.
///
/// # Errors
/// [`Malformed`] if the terminator is missing or an escape is unknown.
pub fn take_bytes(input: &[u8]) -> Result<(Vec<u8>, &[u8]), Malformed> {
    let mut out = Vec::with_capacity(input.len());
    let mut at = 0;
    loop {
        match (input.get(at), input.get(at + 1)) {
            (Some(0), Some(0)) => return Ok((out, &input[at + 2..])),
            (Some(0), Some(0xFF)) => {
                out.push(0);
                at += 2;
            }
            (None | Some(0), _) => return Err(Malformed),
            (Some(byte), _) => {
                out.push(*byte);
                at += 1;
            }
        }
    }
}

/// Reads a big-endian `u64`; returns it and what stands behind it.
///
/// # Errors
/// [`Malformed`] if fewer than eight bytes are left.
pub fn take_u64(input: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let (head, rest) = input.split_first_chunk::<8>().ok_or(Malformed)?;
    Ok((u64::from_be_bytes(*head), rest))
}

/// Reads a big-endian `u32`; returns it and what stands behind it.
///
/// # Errors
/// [`Malformed`] if fewer than four bytes are left.
pub fn take_u32(input: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (head, rest) = input.split_first_chunk::<4>().ok_or(Malformed)?;
    Ok((u32::from_be_bytes(*head), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(bytes: &[u8], tail: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, bytes);
        out.extend_from_slice(tail);
        out
    }

    proptest! {
        #[test]
        fn encoding_keeps_the_order_and_comes_back(
            a in prop::collection::vec(prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 0..6),
            b in prop::collection::vec(prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let (x, y) = (encoded(&a, &tail), encoded(&b, b""));
            if a != b {
                prop_assert_eq!(a.cmp(&b), x.cmp(&y));
            }
            prop_assert_eq!(take_bytes(&x).unwrap(), (a, &tail[..]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..32)) {
            let _ = take_bytes(&bytes);
            let _ = take_u64(&bytes);
        }
    }

    #[test]
    fn the_encoding_stays_as_it_is() {
        for (plain, stored) in [(&b""[..], &b"\0\0"[..]), (b"ab", b"ab\0\0"), (b"a\0\xFFb", b"a\0\xFF\xFFb\0\0")] {
            assert_eq!(encoded(plain, b""), stored);
        }
    }

    #[test]
    fn a_missing_terminator_is_malformed() {
        assert_eq!(take_bytes(b"abc"), Err(Malformed));
        assert_eq!(take_bytes(b"abc\0"), Err(Malformed));
        assert_eq!(take_bytes(b"abc\0\x01"), Err(Malformed));
    }
}
