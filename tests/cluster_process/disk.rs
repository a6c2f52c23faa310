//! What stands between the nodes and their disks: a preloaded library that notes what they do to their files, and spoils it
//! where a test asks for it. `shim.c` says how.
//!
//! Guarantees: a call is noted before the node hears that it succeeded; a fault that was set or cleared holds from the next
//! call on. Leaves out: what the notes prove (`trace`), and files that are mapped or written without the C library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::time::{ClockId, clock_gettime};

use crate::process::Cluster;
use crate::trace::Trace;

/// Preloaded into each node; built by the C compiler.
const SHIM: &str = include_str!("shim.c");

/// What can be wrong with a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Syncs of log files fail.
    SyncFails,
    /// Syncs of log files are not done, but said to be.
    SyncFakes,
    /// Syncs of log files take longer by so many milliseconds.
    SyncDelay(u64),
    /// Syncs of log files do not end.
    SyncHolds,
    /// There is no room for snapshot files.
    SnapshotsFull,
    /// There is room for so many bytes.
    Room(u64),
    /// The process is killed behind so many calls that change something.
    EndsBehind(u64),
}

impl Fault {
    fn file(self) -> &'static str {
        match self {
            Self::SyncFails => "sync-fails",
            Self::SyncFakes => "sync-fakes",
            Self::SyncDelay(_) => "sync-delay",
            Self::SyncHolds => "sync-holds",
            Self::SnapshotsFull => "snapshots-full",
            Self::Room(_) => "room",
            Self::EndsBehind(_) => "ends-behind",
        }
    }
}

/// The disk of one node.
pub(crate) struct Disk {
    data: PathBuf,
    control: PathBuf,
}

impl Disk {
    /// Puts the library under all nodes of a cluster that was not started yet.
    pub(crate) fn under(cluster: &mut Cluster) -> Vec<Self> {
        // The library compares paths, and sees open files by their real ones.
        let dir = cluster.dir.path().canonicalize().unwrap();
        let disk = |node: &mut crate::process::Member| {
            node.dir = dir.join(&node.name);
            let disk = Self::of(&node.dir);
            node.settings.env.extend(disk.env());
            disk
        };
        cluster.nodes.iter_mut().map(disk).collect()
    }

    /// What lies under a directory, whose path must be a real one: of any process with the variables [`Self::env`].
    pub(crate) fn of(data: &Path) -> Self {
        let mut control = data.as_os_str().to_owned();
        control.push("-disk");
        let disk = Self { data: data.to_owned(), control: control.into() };
        fs::create_dir(&disk.control).unwrap();
        disk
    }

    /// The environment of a process that is to use it.
    pub(crate) fn env(&self) -> [(String, String); 3] {
        let show = |path: &Path| path.to_string_lossy().into_owned();
        let library = build(self.data.parent().expect("it lies in a folder of the test"));
        [("LD_PRELOAD", &library), ("DISK_DATA", &self.data), ("DISK_CONTROL", &self.control)]
            .map(|(name, path)| (name.to_owned(), show(path)))
    }

    /// Begins a fault.
    pub(crate) fn set(&self, fault: Fault) {
        let contents = match fault {
            Fault::SyncDelay(number) | Fault::Room(number) | Fault::EndsBehind(number) => number.to_string(),
            _ => String::new(),
        };
        // Complete when it appears.
        let beside = self.control.join("new");
        fs::write(&beside, contents).unwrap();
        fs::rename(beside, self.control.join(fault.file())).unwrap();
    }

    /// Ends a fault.
    pub(crate) fn clear(&self, fault: Fault) {
        fs::remove_file(self.control.join(fault.file())).unwrap();
    }

    /// What the node did to its files up to now, in all its lives.
    pub(crate) fn trace(&self) -> Trace {
        Trace::parse(&self.data, &fs::read_to_string(self.control.join("trace")).unwrap())
    }
}

fn build(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    if library.exists() {
        return library;
    }
    fs::write(&source, SHIM).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl");
    let compiled = compiler.output().expect("a C compiler, which the README asks for");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

/// The clock of the notes, in nanoseconds.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}
