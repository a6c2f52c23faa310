//! History files: JSON lines with a head and an end (docs/formats.md).
//!
//! Guarantees: a file that is cut, damaged, of another format or version, or that holds anything which is not described, is
//! refused with the number of the line; a line is read no further than [`LINE_BYTES_MAX`], so that no file takes more memory
//! than its operations do. The order of the operations says nothing and may be any. Leaves out: judging.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::action::Action;
use super::operation::Operation;

/// What the head of a file calls the format.
pub const FORMAT: &str = "quorate-history";

/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// The longest line, in bytes, its end included.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// The most operations in one file.
pub const OPERATIONS_MAX: usize = 10_000_000;

/// The first line: where and when the history was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The wall time at the start of the recording, as in RFC 3339: for people only.
    pub started: String,
    /// The nodes that operations were sent to; operations name them by their place.
    pub nodes: Vec<String>,
    /// What all keys begin with. Nobody else wrote such keys, and there were none before.
    pub prefix: String,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    end: End,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    operations: u64,
    /// In hexadecimal: the sum of the XXH3 of all lines before, without their ends. It does not depend on their order.
    checksum: String,
}

/// A history as a file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Where and when.
    pub head: Head,
    /// The operations, in the order of the file.
    pub operations: Vec<Operation>,
}

/// Why a file is no history that can be judged.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
    /// It has no line at all.
    #[error("is empty; a history begins with a line that holds {{\"format\":\"{FORMAT}\",\"version\":{VERSION},…}}")]
    Empty,
    /// It is something else.
    #[error(
        "line 1: this is no history: {0}; a history begins with {{\"format\":\"{FORMAT}\",\"version\":{VERSION},…}}"
    )]
    Foreign(String),
    /// It is of another version.
    #[error("line 1: the history is of version {0}; this program reads version {VERSION}")]
    Version(u64),
    /// A line is not as it must be.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The end is missing.
    #[error(
        "line {line}: the history ends here without its last line, so it is cut: its recorder was killed, or is still at work"
    )]
    Cut {
        /// The last line, counted from 1.
        line: u64,
    },
    /// The end says something else than what stands before it.
    #[error("line {line}: the end of the history does not go with what is before it: {why}; the file is damaged")]
    Damaged {
        /// The last line, counted from 1.
        line: u64,
        /// What does not go together.
        why: String,
    },
}

/// Writes a history file, operation by operation.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    operations: u64,
    checksum: u64,
    line: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// What writing meets.
    pub fn new(out: W, head: &Head) -> io::Result<Self> {
        let mut writer = Self { out, operations: 0, checksum: 0, line: Vec::new() };
        writer.summed(head)?;
        Ok(writer)
    }

    /// Appends an operation.
    ///
    /// # Errors
    /// What writing meets; an operation that is larger than a line may be.
    pub fn push(&mut self, operation: &Operation) -> io::Result<()> {
        self.operations += 1;
        self.summed(operation)
    }

    /// Writes the end. A file without it is refused by [`read`].
    ///
    /// # Errors
    /// What writing meets.
    pub fn finish(mut self) -> io::Result<W> {
        let end = End { operations: self.operations, checksum: format!("{:016x}", self.checksum) };
        self.put(&EndLine { end })?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// A line that the checksum covers.
    fn summed(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.put(value)?;
        let text = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        self.checksum = self.checksum.wrapping_add(xxh3_64(text));
        Ok(())
    }

    fn put(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value)?;
        self.line.push(b'\n');
        if self.line.len() > LINE_BYTES_MAX {
            let why = format!("a line of {} bytes; {LINE_BYTES_MAX} are allowed", self.line.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.out.write_all(&self.line)
    }
}

/// Reads a history; `progress` is told now and then how many bytes were read.
///
/// # Errors
/// [`FileError`].
pub fn read(input: impl BufRead, progress: &mut dyn FnMut(u64)) -> Result<History, FileError> {
    let mut lines = Lines { input, number: 0, bytes: 0, checksum: 0, line: Vec::new() };
    let Some(first) = lines.next()? else { return Err(FileError::Empty) };
    let head = head_of(first)?;
    lines.add_to_checksum();
    let mut operations: Vec<Operation> = Vec::new();
    // Where each id stood first.
    let mut ids: HashMap<u64, u64> = HashMap::new();
    loop {
        let number = lines.number + 1;
        let Some(line) = lines.next()? else { return Err(FileError::Cut { line: number - 1 }) };
        if line.starts_with(b"{\"end\"") {
            let end: EndLine = parse(line).map_err(|why| FileError::Line { line: number, why })?;
            lines.check_end(&end.end, operations.len() as u64)?;
            break;
        }
        let wrong = |why: String| FileError::Line { line: number, why };
        let operation: Operation = parse(line).map_err(wrong)?;
        operation.validate().map_err(wrong)?;
        if operation.node as usize >= head.nodes.len() {
            let why = format!("node {} is not among the {} of the first line", operation.node, head.nodes.len());
            return Err(wrong(why));
        }
        if let Some(first) = ids.insert(operation.id, number) {
            return Err(wrong(format!("the id {} stands in line {first} already", operation.id)));
        }
        if operations.len() == OPERATIONS_MAX {
            return Err(wrong(format!("more than {OPERATIONS_MAX} operations")));
        }
        operations.push(operation);
        lines.add_to_checksum();
        if number.is_multiple_of(1_024) {
            progress(lines.bytes);
        }
    }
    for operation in &operations {
        if let Action::List(list) = &operation.action
            && let Some(before) = list.continues
            && !ids.contains_key(&before)
        {
            let line = ids.get(&operation.id).copied().unwrap_or_default();
            let why = format!("it continues operation {before}, which is not there");
            return Err(FileError::Line { line, why });
        }
    }
    progress(lines.bytes);
    Ok(History { head, operations })
}

fn head_of(line: &[u8]) -> Result<Head, FileError> {
    /// What every version of the format has.
    #[derive(Deserialize)]
    struct Name {
        format: String,
        version: u64,
    }
    let name: Name = parse(line).map_err(FileError::Foreign)?;
    if name.format != FORMAT {
        return Err(FileError::Foreign(format!("its format is {:?}", name.format)));
    }
    if name.version != u64::from(VERSION) {
        return Err(FileError::Version(name.version));
    }
    parse(line).map_err(|why| FileError::Line { line: 1, why })
}

/// JSON of one line; an error tells the column.
fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| {
        let (column, said) = (error.column(), error.to_string());
        let said = said.split(" at line ").next().unwrap_or_default();
        format!("column {column}: {said}")
    })
}

/// The lines of a file, one at a time.
struct Lines<R> {
    input: R,
    number: u64,
    bytes: u64,
    checksum: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The next line without its end; `None` behind the last one.
    fn next(&mut self) -> Result<Option<&[u8]>, FileError> {
        self.line.clear();
        let most = LINE_BYTES_MAX as u64;
        let read = io::Read::take(&mut self.input, most).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.bytes += read as u64;
        match self.line.pop() {
            Some(b'\n') => Ok(Some(&self.line)),
            _ if read as u64 == most => {
                let why = format!("it has more than {LINE_BYTES_MAX} bytes");
                Err(FileError::Line { line: self.number, why })
            }
            _ => Err(FileError::Cut { line: self.number }),
        }
    }

    /// Counts the line that was read last.
    fn add_to_checksum(&mut self) {
        self.checksum = self.checksum.wrapping_add(xxh3_64(&self.line));
    }

    /// Compares what the end says, and that it is the end.
    fn check_end(&mut self, end: &End, operations: u64) -> Result<(), FileError> {
        let line = self.number;
        if end.operations != operations {
            let why = format!("it counts {} operations, and there are {operations}", end.operations);
            return Err(FileError::Damaged { line, why });
        }
        let checksum = format!("{:016x}", self.checksum);
        if end.checksum != checksum {
            let why = format!("its checksum is {}, and that of the lines is {checksum}", end.checksum);
            return Err(FileError::Damaged { line, why });
        }
        match self.next()? {
            None => Ok(()),
            Some(_) => {
                let why = "something follows behind the end of the history".to_owned();
                Err(FileError::Line { line: line + 1, why })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cause, Delete, Get, Outcome};
    use super::*;

    fn head() -> Head {
        Head {
            format: FORMAT.to_owned(),
            version: VERSION,
            started: "2026-11-21T00:00:00Z".to_owned(),
            nodes: vec!["http://h:1".to_owned()],
            prefix: "p/".to_owned(),
        }
    }

    fn operation(id: u64) -> Operation {
        Operation {
            id,
            client: 1,
            node: 0,
            called: id * 10,
            returned: Some(id * 10 + 5),
            action: Action::Get(Get { key: "p/k".to_owned(), ..Get::default() }),
            outcome: Outcome::Refused(Cause { code: "no_leader".to_owned() }),
        }
    }

    fn written(operations: &[Operation]) -> String {
        let mut writer = Writer::new(Vec::new(), &head()).unwrap();
        operations.iter().for_each(|operation| writer.push(operation).unwrap());
        String::from_utf8(writer.finish().unwrap()).unwrap()
    }

    fn refused(text: &str) -> String {
        read(text.as_bytes(), &mut |_| {}).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let unknown = Operation {
            returned: None,
            action: Action::Delete(Delete { key: "p/\u{1F980}\n".to_owned(), if_revision: Some(7) }),
            outcome: Outcome::Unknown(Cause { code: "timeout".to_owned() }),
            ..operation(2)
        };
        let operations = vec![operation(1), unknown];
        let text = written(&operations);
        let mut bytes = 0;
        let history = read(text.as_bytes(), &mut |read| bytes = read).unwrap();
        assert_eq!((history.head, history.operations, bytes), (head(), operations, text.len() as u64));
        // The order says nothing.
        let mut lines: Vec<&str> = text.lines().collect();
        lines.swap(1, 2);
        assert_eq!(read((lines.join("\n") + "\n").as_bytes(), &mut |_| {}).unwrap().operations[0].id, 2);
    }

    #[test]
    fn every_cut_is_noticed() {
        let text = written(&[operation(1), operation(2)]);
        for end in 0..text.len() {
            assert!(read(&text.as_bytes()[..end], &mut |_| {}).is_err(), "cut at {end}");
        }
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            refused(&(lines[..3].join("\n") + "\n")).contains("line 3: the history ends here without its last line")
        );
        assert!(refused(&[lines[0], lines[1], lines[3], ""].join("\n")).contains("it counts 2 operations"));
        assert!(refused(&format!("{text}{{}}\n")).contains("line 5: something follows behind the end"));
        assert!(refused("").contains("is empty"));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let text = written(&[operation(1)]);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(read(&bytes[..], &mut |_| {}).is_err(), "byte {at} changed");
        }
    }

    #[test]
    fn what_is_not_described_is_refused_with_its_line() {
        let line = serde_json::to_string(&operation(1)).unwrap();
        let with = |from: &str, to: &str| {
            let text = written(&[operation(7)]);
            let lines: Vec<&str> = text.lines().collect();
            refused(&format!("{}\n{}\n", lines[0], line.replace(from, to)))
        };
        let cases = [
            ("\"client\":1", "\"client\":1,\"zone\":2", "unknown field `zone`"),
            ("\"get\"", "\"peek\"", "unknown variant `peek`"),
            ("\"key\"", "\"kay\"", "unknown field `kay`"),
            ("\"node\":0", "\"node\":1", "node 1 is not among the 1"),
            ("\"returned\":15", "\"returned\":9", "it returned at 9 ns, before it was called at 10 ns"),
            ("\"returned\":15,", "", "`returned` must say when"),
            ("\"client\":1", "\"client\":-1", "line 2: column"),
            ("}", "", "line 2: column"),
        ];
        for (from, to, said) in cases {
            let told = with(from, to);
            assert!(told.starts_with("line 2: ") && told.contains(said), "{to}: {told}");
        }
        let text = written(&[operation(1), operation(1)]);
        assert_eq!(refused(&text), "line 3: the id 1 stands in line 2 already");
        let long =
            format!("{}{}\n", written(&[]).lines().next().unwrap(), "\n".to_owned() + &" ".repeat(LINE_BYTES_MAX));
        assert!(refused(&long).contains(&format!("line 2: it has more than {LINE_BYTES_MAX} bytes")));
    }

    #[test]
    fn other_formats_and_versions_are_told_as_such() {
        let text = written(&[]);
        assert!(
            refused(&text.replace("\"version\":1", "\"version\":2")).contains("is of version 2; this program reads")
        );
        assert!(refused(&text.replace(FORMAT, "jepsen")).contains("its format is \"jepsen\""));
        assert!(refused("hello\n").contains("line 1: this is no history"));
    }
}
