//! Old bytes for tests: each format's examples stand in `tests/fixtures/<format>.txt`, one `name hex` a line.
//!
//! Guarantees: an example that is missing, changed or left over fails the test that names it. Leaves out: decoding; whoever
//! owns the format decodes what [`check`] returns. Files larger than a few lines are fixtures of their own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Set to write a fixture anew: only ever for a new file of a new format, or to add an example.
const BLESS: &str = "QUORATE_BLESS_FIXTURES";

/// Checks that today's program still writes the bytes in the fixture; returns these bytes by name.
pub(crate) fn check<'a>(
    format: &str,
    written: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
) -> BTreeMap<String, Vec<u8>> {
    let written: BTreeMap<String, Vec<u8>> =
        written.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    if std::env::var_os(BLESS).is_some() {
        let lines: Vec<_> = written.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
        std::fs::write(path(format), lines.concat()).expect("the fixtures of the sources can be written");
    }
    let stored = read(format);
    for (name, bytes) in &written {
        let old = stored.get(name).map(|old| hex(old));
        assert_eq!(old, Some(hex(bytes)), "{name} of {format} has changed: add a format, keep the old fixture");
    }
    assert_eq!(written.len(), stored.len(), "{format} holds examples that nobody writes");
    stored
}

/// The bytes in the fixture by name, of a format that is not written any more.
pub(crate) fn read(format: &str) -> BTreeMap<String, Vec<u8>> {
    let path = path(format);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .lines()
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .map(|(name, hex)| (name.to_owned(), bytes(hex)))
        .collect()
}

fn path(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{format}.txt"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("a fixture holds hexadecimal digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}
