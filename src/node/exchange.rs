//! Exchanging everything in a node's directory for something else, in a way that no crash leaves half done.
//!
//! ```text
//! recovery-<n>.tmp/       what is to come, while it is made; worthless after a crash
//! recovery-<n>/           the same, complete; from here on only the way forward is left
//! before-recovery-<n>/    what was there, moved aside and never removed
//! ```
//!
//! Each part of the directory changes places by two renames, one after the other; how far this has come can be told from
//! what is there. Guarantees: until the folder that is to come is complete, nothing of the old is touched; from then on
//! the node refuses to start, and [`Exchange::finish`] goes on wherever a crash has stopped it. Leaves out: what is
//! in it, and the lock, which the caller holds all through.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::directory::DirectoryError;

/// What changes places, each in one piece.
const PARTS: [&str; 4] = ["snapshots", "state", "log", "identity"];

/// What the folder is called that is to come; a number follows.
const COMING: &str = "recovery-";

/// What the folder is called that takes what was there; the same number follows.
const ASIDE: &str = "before-recovery-";

/// In the folder that is to come: what whoever made it wants to know when it goes on. It takes no place.
const NOTE: &str = "note.json";

/// Behind the name of a folder that is not complete.
const UNFINISHED: &str = ".tmp";

/// A folder that is being made.
#[derive(Debug)]
pub(super) struct Preparation {
    dir: PathBuf,
    number: u64,
}

/// A folder that is complete, and has not taken its place yet.
#[derive(Debug)]
pub(super) struct Exchange {
    dir: PathBuf,
    number: u64,
}

/// The exchange that was begun in a node's directory and not finished; `None` if there is none.
pub(super) fn unfinished(dir: &Path) -> Result<Option<Exchange>, DirectoryError> {
    let number = names(dir)?.iter().filter_map(|name| name.strip_prefix(COMING)?.parse().ok()).max();
    Ok(number.map(|number| Exchange { dir: dir.to_owned(), number }))
}

/// Whether a name is that of a folder that was being made when a crash came.
pub(super) fn is_leftover(name: &str) -> bool {
    let number = name.strip_prefix(COMING).and_then(|rest| rest.strip_suffix(UNFINISHED));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

/// Whether a name says nothing of a member: the lock, what a crash has left, and what a file system makes at its root.
pub(super) fn means_nothing(name: &str) -> bool {
    name == "LOCK" || name == "lost+found" || is_leftover(name)
}

/// Makes an empty folder for what is to come. What an earlier attempt left behind is removed.
pub(super) fn begin(dir: &Path) -> Result<Preparation, DirectoryError> {
    let names = names(dir)?;
    for leftover in names.iter().filter(|name| is_leftover(name)) {
        let path = dir.join(leftover);
        fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
    }
    let numbered = |name: &String| [COMING, ASIDE].iter().find_map(|prefix| name.strip_prefix(prefix)?.parse().ok());
    let number = names.iter().filter_map(numbered).max().unwrap_or(0_u64) + 1;
    let preparation = Preparation { dir: dir.to_owned(), number };
    fs::create_dir(preparation.path()).map_err(failed("create", &preparation.path()))?;
    Ok(preparation)
}

/// What a folder holds, by name.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, DirectoryError> {
    let list = || -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().map_err(failed("list", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { action, path, source }
}

/// Brings the names in a folder to disk.
fn sync(folder: &Path) -> Result<(), DirectoryError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

impl Preparation {
    /// Where it is made.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(format!("{COMING}{}{UNFINISHED}", self.number))
    }

    /// Leaves a note that can be read until all has taken its place; on return it is on disk, but for its name.
    pub(super) fn write_note(&self, note: &[u8]) -> Result<(), DirectoryError> {
        let path = self.path().join(NOTE);
        let write = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(note)?;
            file.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Declares it complete. All that is in it must be on disk already, but for the names in the folder itself.
    pub(super) fn complete(self) -> Result<Exchange, DirectoryError> {
        let (made, exchange) = (self.path(), Exchange { dir: self.dir, number: self.number });
        sync(&made)?;
        fs::rename(&made, exchange.coming()).map_err(failed("rename", &made))?;
        sync(&exchange.dir)?;
        Ok(exchange)
    }
}

impl Exchange {
    fn coming(&self) -> PathBuf {
        self.dir.join(format!("{COMING}{}", self.number))
    }

    /// The note that was left when it was made, if one was.
    pub(super) fn note(&self) -> Result<Option<Vec<u8>>, DirectoryError> {
        let path = self.coming().join(NOTE);
        match fs::read(&path) {
            Ok(note) => Ok(Some(note)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Where what was there lies now; there is no such folder if nothing was.
    pub(super) fn aside(&self) -> PathBuf {
        self.dir.join(format!("{ASIDE}{}", self.number))
    }

    /// Goes on to the end.
    pub(super) fn finish(&self) -> Result<(), DirectoryError> {
        while self.advance()? {}
        Ok(())
    }

    /// Takes the next step, and tells whether there was one.
    pub(super) fn advance(&self) -> Result<bool, DirectoryError> {
        let (coming, aside) = (self.coming(), self.aside());
        for part in PARTS {
            let (new, here, old) = (coming.join(part), self.dir.join(part), aside.join(part));
            if !exists(&new)? {
                continue;
            }
            if !exists(&here)? {
                self.move_part(&new, &here, &coming)?;
            } else if exists(&aside)? {
                self.move_part(&here, &old, &aside)?;
            } else {
                fs::create_dir(&aside).map_err(failed("create", &aside))?;
                sync(&self.dir)?;
            }
            return Ok(true);
        }
        self.forget(&coming)
    }

    /// Removes the folder from which everything has taken its place, and tells whether it was still there. As long as it has
    /// its name it has its note, so it is renamed first; what a crash leaves then is a leftover.
    fn forget(&self, coming: &Path) -> Result<bool, DirectoryError> {
        let over = self.dir.join(format!("{COMING}{}{UNFINISHED}", self.number));
        match fs::rename(coming, &over) {
            Ok(()) => sync(&self.dir)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("rename", coming)(error)),
        }
        match fs::remove_file(over.join(NOTE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("empty", &over)(error)),
            Ok(()) | Err(_) => {}
        }
        fs::remove_dir(&over).map_err(failed("remove", &over))?;
        sync(&self.dir).map(|()| true)
    }

    /// Moves a part between the node's directory and another folder.
    fn move_part(&self, from: &Path, to: &Path, other: &Path) -> Result<(), DirectoryError> {
        fs::rename(from, to).map_err(failed("move", from))?;
        sync(&self.dir)?;
        sync(other)
    }
}

fn exists(path: &Path) -> Result<bool, DirectoryError> {
    path.try_exists().map_err(failed("look for", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with `old` in each part, and a complete folder with `new` in each.
    fn begun(parts: &[&str]) -> (tempfile::TempDir, Exchange) {
        let dir = tempfile::tempdir().unwrap();
        for part in parts {
            fs::write(dir.path().join(part), "old").unwrap();
        }
        let preparation = begin(dir.path()).unwrap();
        for part in PARTS {
            fs::write(preparation.path().join(part), "new").unwrap();
        }
        preparation.write_note(b"why").unwrap();
        let exchange = preparation.complete().unwrap();
        (dir, exchange)
    }

    fn contents(dir: &Path) -> Vec<String> {
        PARTS.iter().map(|part| fs::read_to_string(dir.join(part)).unwrap_or_default()).collect()
    }

    #[test]
    fn an_exchange_that_stops_anywhere_is_found_and_goes_on() {
        let (dir, exchange) = begun(&PARTS);
        let mut steps = 0;
        while exchange.advance().unwrap() {
            steps += 1;
        }
        assert_eq!((steps, contents(dir.path())), (1 + 2 * PARTS.len() + 1, vec!["new".to_owned(); 4]));
        for stop in 0..=steps {
            let (dir, exchange) = begun(&PARTS);
            for _ in 0..stop {
                assert!(exchange.advance().unwrap());
            }
            drop(exchange);
            match unfinished(dir.path()).unwrap() {
                Some(exchange) => {
                    assert_eq!(exchange.note().unwrap().as_deref(), Some(&b"why"[..]), "stopped after step {stop}");
                    exchange.finish().unwrap();
                }
                None => assert_eq!(stop, steps, "after step {stop} nobody knows of it"),
            }
            assert_eq!(contents(dir.path()), ["new"; 4], "stopped after step {stop}");
            assert_eq!(contents(&dir.path().join("before-recovery-1")), ["old"; 4], "stopped after step {stop}");
            assert!(unfinished(dir.path()).unwrap().is_none());
        }
    }

    #[test]
    fn where_nothing_was_nothing_is_put_aside() {
        for parts in [&[][..], &["log", "identity"]] {
            let (dir, exchange) = begun(parts);
            exchange.finish().unwrap();
            assert_eq!(contents(dir.path()), ["new"; 4]);
            assert_eq!(exchange.aside().exists(), !parts.is_empty());
        }
    }

    #[test]
    fn a_folder_that_was_never_complete_is_worthless_and_numbers_are_not_used_again() {
        let (dir, exchange) = begun(&PARTS);
        exchange.finish().unwrap();
        let abandoned = begin(dir.path()).unwrap();
        assert!(abandoned.path().ends_with("recovery-2.tmp"));
        fs::write(abandoned.path().join("identity"), "half").unwrap();
        assert!(unfinished(dir.path()).unwrap().is_none());
        let next = begin(dir.path()).unwrap();
        assert!(next.path().ends_with("recovery-2.tmp") && !next.path().join("identity").exists());
        next.complete().unwrap().finish().unwrap();
        assert_eq!(contents(dir.path()), ["new"; 4], "what is not to come stays");
        for (name, leftover) in [("recovery-1.tmp", true), ("recovery-1", false), ("recovery-x.tmp", false)] {
            assert_eq!((is_leftover(name), means_nothing(name)), (leftover, leftover), "{name}");
        }
        assert!(means_nothing("lost+found") && !is_leftover("lost+found") && !means_nothing("log"));
    }
}
