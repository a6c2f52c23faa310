//! Standard output: text for people, JSON for programs.
//!
//! Guarantees: everything is written through one buffer whose errors come back, so that a closed pipe never panics; keys
//! and values in text show control and non-UTF-8 bytes escaped, one record a line. Leaves out: standard error.

use std::io::{self, BufWriter, IsTerminal as _, Write};

use serde::Serialize;

use super::Failure;

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Standard output of one command.
pub(super) struct Output {
    pub(super) format: Format,
    out: BufWriter<io::Stdout>,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format, out: BufWriter::new(io::stdout()) }
    }

    /// One line.
    pub(super) fn line(&mut self, text: &str) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Text without a line end.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.out.write_all(text.as_bytes())?)
    }

    /// A value on one line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = json_text(value)?;
        self.line(&text)
    }

    /// The bytes as they are; on a terminal with a line end, so that the prompt does not stick to them.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes)?;
        if io::stdout().is_terminal() && !bytes.ends_with(b"\n") {
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Rows in columns as wide as their widest cell; the first row is the heading.
    pub(super) fn table(&mut self, rows: &[Vec<String>]) -> Result<(), Failure> {
        let mut widths: Vec<usize> = Vec::new();
        for row in rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in rows {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            self.line(cells.join("  ").trim_end())?;
        }
        Ok(())
    }

    /// Hands everything over. A command that forgets it loses the end of its output, so each ends with it.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }
}

/// A value as JSON text.
pub(super) fn json_text(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::integrity(format!("the result is no JSON: {error}")))
}

/// Bytes for people: text as it is, control characters, backslashes and other bytes escaped as in Rust.
pub(super) fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                control if control.is_control() => text.extend(control.escape_default()),
                plain => text.push(plain),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn readable_text_stays_on_one_line_and_hides_nothing() {
        assert_eq!(readable("grüße".as_bytes()), "grüße");
        assert_eq!(readable(b"a\nb\t\\ \xff\x00"), "a\\nb\\t\\\\ \\xff\\u{0}");
    }
}
