//! A frame around one value: magic, format version, body, checksum.
//!
//! ```text
//! magic (4) | version (1) | body | crc32c of all before it (4, little-endian)
//! ```
//!
//! Guarantees: a flipped bit, a cut end, another kind of file and a newer format are each told apart. Leaves out: the
//! body, which is the caller's (postcard, as a rule), and streams, which frame their blocks themselves.

/// What a frame adds to its body, in bytes.
pub const OVERHEAD_BYTES: usize = 9;

/// Why a frame can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than any frame.
    #[error("cut short: {0} bytes")]
    Short(usize),
    /// Another kind of data.
    #[error("not what was expected: it begins with \"{}\", not \"{}\"", .found.escape_ascii(), .expected.escape_ascii())]
    Magic {
        /// What was looked for.
        expected: [u8; 4],
        /// What stood there.
        found: [u8; 4],
    },
    /// Damaged.
    #[error("damaged: the checksum does not match")]
    Checksum,
    /// Written by a newer program.
    #[error("format version {found} is newer than the newest this program reads ({newest}); use a newer program")]
    Newer {
        /// The version that was found.
        found: u8,
        /// The newest that can be read.
        newest: u8,
    },
    /// The body is not what the version says.
    #[error("damaged: the contents can't be decoded")]
    Body,
}

/// Frames a body.
#[must_use]
pub fn seal(magic: [u8; 4], version: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + OVERHEAD_BYTES);
    out.extend_from_slice(&magic);
    out.push(version);
    out.extend_from_slice(body);
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

/// Opens a frame: its version (at most `newest`) and its body.
///
/// # Errors
/// [`FrameError`], never [`FrameError::Body`].
pub fn open(magic: [u8; 4], newest: u8, bytes: &[u8]) -> Result<(u8, &[u8]), FrameError> {
    let short = || FrameError::Short(bytes.len());
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    if *head != magic {
        return Err(FrameError::Magic { expected: magic, found: *head });
    }
    let (body, sum) = rest.split_last_chunk::<4>().ok_or_else(short)?;
    let (&version, body) = body.split_first().ok_or_else(short)?;
    if crc32c::crc32c(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*sum) {
        return Err(FrameError::Checksum);
    }
    if version > newest {
        return Err(FrameError::Newer { found: version, newest });
    }
    Ok((version, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 4] = *b"TEST";

    #[test]
    fn a_frame_comes_back() {
        assert_eq!(open(MAGIC, 3, &seal(MAGIC, 3, b"body")), Ok((3, &b"body"[..])));
        assert_eq!(open(MAGIC, 3, &seal(MAGIC, 1, b"")), Ok((1, &b""[..])));
    }

    #[test]
    fn the_bytes_of_a_frame_stay_as_they_are() {
        assert_eq!(seal(*b"TEST", 1, b"some body"), b"TEST\x01some body\x90\xF9\xA4\xC1");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let frame = seal(MAGIC, 1, b"some body");
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(MAGIC, 1, &bad).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(open(MAGIC, 1, &frame[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_newer_version_and_another_kind_are_named() {
        let newer = open(MAGIC, 1, &seal(MAGIC, 2, b"x")).unwrap_err();
        assert_eq!(newer, FrameError::Newer { found: 2, newest: 1 });
        let other = open(MAGIC, 1, &seal(*b"OTHR", 1, b"x")).unwrap_err();
        assert_eq!(other.to_string(), "not what was expected: it begins with \"OTHR\", not \"TEST\"");
    }
}
