//! What a node did to its files, and what of it would survive a power cut.
//!
//! Survival is judged by POSIX alone and not by what one file system does besides: bytes survive once a sync of their file
//! that began after they were written has ended, and a name once a sync of its folder has, and that folder's own name in
//! turn. Leaves out: the contents of files, but for the marks that tests write.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Create,
    Write,
    Sync,
    /// A sync that was only said to be done.
    Fake,
    Rename,
    Unlink,
}

/// One call that succeeded.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// When it began and ended, in nanoseconds of `disk::now`.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) done: Done,
    /// Of writes and syncs.
    pub(crate) inode: u64,
    /// Of writes.
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
    /// The new name of what was renamed.
    pub(crate) to: PathBuf,
    marks: Vec<u64>,
}

/// All that one node did, by the beginning of each call.
pub(crate) struct Trace {
    data: PathBuf,
    pub(crate) events: Vec<Event>,
    /// Mark to its writes.
    marked: HashMap<u64, Vec<usize>>,
    /// Inode to its syncs; only those behind a write to it are sure to be of the same file.
    syncs: HashMap<u64, Vec<usize>>,
    /// Path to its syncs.
    path_syncs: HashMap<PathBuf, Vec<usize>>,
    /// What gave a file or folder its name.
    named: Vec<usize>,
}

impl Trace {
    pub(crate) fn parse(data: &Path, text: &str) -> Self {
        // The last line may be about to be written.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut events: Vec<Event> = complete.lines().map(event).collect();
        events.sort_by_key(|event| event.start);
        let (mut marked, mut syncs, mut named) = (HashMap::new(), HashMap::new(), Vec::new());
        let mut path_syncs: HashMap<PathBuf, Vec<usize>> = HashMap::new();
        for (at, event) in events.iter().enumerate() {
            for mark in &event.marks {
                marked.entry(*mark).or_insert_with(Vec::new).push(at);
            }
            match event.done {
                Done::Sync => {
                    syncs.entry(event.inode).or_insert_with(Vec::new).push(at);
                    path_syncs.entry(event.path.clone()).or_default().push(at);
                }
                Done::Create | Done::Rename => named.push(at),
                Done::Write | Done::Fake | Done::Unlink => {}
            }
        }
        Self { data: data.to_owned(), events, marked, syncs, path_syncs, named }
    }

    /// Whether a path is a file of the log.
    pub(crate) fn in_log(&self, path: &Path) -> bool {
        path.starts_with(self.data.join("log")) && path != self.data.join("log")
    }

    /// Syncs of log files that began and ended between two moments.
    pub(crate) fn log_syncs(&self, from: u64, until: u64) -> usize {
        let counts = |event: &&Event| event.done == Done::Sync && event.start >= from && event.end <= until;
        self.events.iter().filter(counts).filter(|event| self.in_log(&event.path)).count()
    }

    /// The sync that made a mark in the log survive, if there was one between two moments; else what is missing.
    pub(crate) fn survives(&self, mark: u64, from: u64, until: u64) -> Result<&Event, String> {
        let writes = self.marked.get(&mark).ok_or("it was not written")?;
        let mut missing = "it was written before it was sent".to_owned();
        for write in writes.iter().map(|at| &self.events[*at]).filter(|write| write.start >= from) {
            let Some(sync) = self.sync_after(write.inode, write.end).filter(|sync| sync.end <= until) else {
                missing = format!("{} was not synced behind it", write.path.display());
                continue;
            };
            match self.name_survives(&write.path, write.start, until) {
                Ok(()) => return Ok(sync),
                Err(name) => missing = name,
            }
        }
        Err(missing)
    }

    /// The first sync of a file that began after a moment.
    pub(crate) fn sync_after(&self, inode: u64, moment: u64) -> Option<&Event> {
        let syncs = self.syncs.get(&inode)?;
        let first = syncs.partition_point(|at| self.events[*at].start < moment);
        syncs.get(first).map(|at| &self.events[*at])
    }

    /// Whether the name that a file or folder got last before `before`, and the names of all folders above it that the
    /// node has made, survive a power cut at `until`. What is older than the node is taken to survive.
    pub(crate) fn name_survives(&self, path: &Path, before: u64, until: u64) -> Result<(), String> {
        for path in path.ancestors() {
            let names = |event: &&Event| event.start < before && (event.path == path || event.to == path);
            let Some(named) = self.named.iter().map(|at| &self.events[*at]).rfind(names) else { continue };
            let folder = path.parent().unwrap();
            let syncs = self.path_syncs.get(folder).into_iter().flatten();
            let keeps = |event: &Event| event.start >= named.end && event.end <= until;
            if !syncs.map(|at| &self.events[*at]).any(keeps) {
                return Err(format!("{} was not synced after {} was made in it", folder.display(), path.display()));
            }
        }
        Ok(())
    }
}

fn event(line: &str) -> Event {
    let fields: Vec<&str> = line.split('\t').collect();
    let [start, end, done, inode, bytes, path, other] = fields[..] else { panic!("not a line of a trace: {line}") };
    let done = match done {
        "create" => Done::Create,
        "write" => Done::Write,
        "sync" => Done::Sync,
        "fake" => Done::Fake,
        "rename" => Done::Rename,
        "unlink" => Done::Unlink,
        _ => panic!("not a line of a trace: {line}"),
    };
    let marks = if done == Done::Write { other } else { "" };
    Event {
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
        done,
        inode: inode.parse().unwrap(),
        bytes: bytes.parse().unwrap(),
        path: path.into(),
        to: if done == Done::Rename { other.into() } else { PathBuf::new() },
        marks: marks.split(',').filter(|mark| !mark.is_empty()).map(|mark| mark.parse().unwrap()).collect(),
    }
}

#[test]
fn only_what_posix_keeps_is_taken_to_survive() {
    let survives = |lines: &[&str]| {
        let text: String = lines.iter().map(|line| line.replace(' ', "\t") + "\n").collect();
        Trace::parse(Path::new("/d/n1"), &text).survives(7, 10, 100).is_ok()
    };
    let write = "20 21 write 5 300 /d/n1/log/a 6,7";
    let sync = "22 30 sync 5 0 /d/n1/log/a ";
    assert!(survives(&[write, sync]));
    assert!(!survives(&[write]), "never synced");
    assert!(!survives(&[sync, "20 21 write 5 300 /d/n1/log/a 6"]), "another mark");
    assert!(!survives(&["9 12 write 5 300 /d/n1/log/a 7", sync]), "an earlier request");
    assert!(!survives(&[write, "22 30 fake 5 0 /d/n1/log/a "]), "not done");
    assert!(!survives(&[write, "22 30 sync 6 0 /d/n1/log/b "]), "of another file");
    assert!(!survives(&[write, "20 30 sync 5 0 /d/n1/log/a "]), "begun before it was written");
    assert!(!survives(&[write, "22 101 sync 5 0 /d/n1/log/a "]), "ended behind the answer");
    let (file, file_kept) = ("3 4 create 0 0 /d/n1/log/a ", "5 6 sync 2 0 /d/n1/log ");
    assert!(!survives(&[file, write, sync]), "its name is in no synced folder");
    assert!(!survives(&["1 2 sync 2 0 /d/n1/log ", file, write, sync]), "the folder was synced before");
    assert!(survives(&[file, file_kept, write, sync]));
    let (folder, folder_kept) = ("1 2 create 0 0 /d/n1/log ", "7 8 sync 1 0 /d/n1 ");
    assert!(!survives(&[folder, file, file_kept, write, sync]), "the folder's own name");
    assert!(survives(&[folder, file, file_kept, folder_kept, write, sync]));
    let renamed = "3 4 rename 0 0 /d/n1/log/spare /d/n1/log/a";
    assert!(!survives(&[renamed, write, sync]), "its new name");
    assert!(survives(&[renamed, file_kept, write, sync]));
}
