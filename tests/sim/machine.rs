//! A simulated machine: a wall clock, a disk that outlives processes, and one process at a time, which is a whole `Node` on a
//! runtime of its own.
//!
//! Guarantees: everything of a process runs on the thread of the simulation, on Tokio's paused clock; a crash drops the
//! runtime with all its tasks and leaves of the disk what a power cut would. The log and the state engine are in memory;
//! identity, lock and snapshot files are real files, which a crash leaves as they are. Leaves out: a power cut that takes
//! files which were written and not synced.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::Mutex;
use quorate::backup::care::Care;
use quorate::backup::credentials::Credentials;
use quorate::backup::seal::Recipients;
use quorate::backup::settings::TargetSettings;
use quorate::backup::target::Stores;
use quorate::backup::verify::Level;
use quorate::clock::Instant;
use quorate::host::SimulatedHost;
use quorate::node::{ArchiveConfig, Join, MemberPolicy, Node, NodeConfig, Origin};
use quorate::raft::{Engines, LogConfig, LogMedium, MemoryLog, RaftConfig, Timers};
use quorate::state::StateConfig;
use quorate::storage::{FaultPoint, MemoryEngines};
use quorate::telemetry::Metrics;
use quorate::transport::PeerHandler;
use quorate::types::{Member, WallTime};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::plan::MACHINES;
use crate::store::Store;
use crate::wire::{Load, Outbox, Parcel, Place, address};

/// Where all wall clocks stand at the beginning, in milliseconds: a day in 2026.
pub(crate) const WALL_BEGIN: u64 = 1_780_000_000_000;

/// The batches of a checkpoint: records, pointers and the marker.
const CHECKPOINT_BATCHES: u64 = 3;

/// What an engine says that was made to fail.
const INJECTED: &str = "injected fault";

/// What nodes are started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) timers: Timers,
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) overlay_bytes: usize,
    /// Machines that form the cluster; those behind them join.
    pub(crate) founders: usize,
    /// How they archive, if they do.
    pub(crate) archive: Option<Archiving>,
}

/// How nodes archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Archiving {
    /// What was written is archived after so many steps.
    pub(crate) flush: u64,
    pub(crate) flush_bytes: u64,
    /// When whole states are.
    pub(crate) full: &'static str,
}

/// How a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskMood {
    /// A sync takes from the first to the second, in steps.
    pub(crate) sync: (u64, u64),
    /// The longest other blocking work takes, in steps.
    pub(crate) work: u64,
}

/// What a crash leaves of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process was killed: all that was handed to the system is there.
    Kill,
    /// Power was cut: of what was not synced, this part in a thousand is there.
    PowerCut(u32),
}

/// What is done to a disk while no process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The newest snapshot file is gone.
    NoSnapshot,
    /// It ends early.
    ShortSnapshot,
    /// A bit of it is another.
    FlippedSnapshot,
    /// The state engine is empty.
    NoState,
    /// The state engine is empty and there are no snapshot files.
    NeitherStateNorSnapshots,
    /// The log is gone, with the vote.
    NoLog,
}

struct Process {
    /// Before the runtime, whose end it would outlive.
    node: Node,
    handler: Arc<dyn PeerHandler>,
    /// What has threads of its own on a real machine. Before the runtime as well.
    threads: LocalSet,
    runtime: Runtime,
    epoch: Instant,
    begun_at: u64,
    /// What goes through a pipe is answered one by one.
    pipes: BTreeMap<u64, mpsc::UnboundedSender<Parcel>>,
    /// How its start ended.
    started: Arc<Mutex<Option<Result<(), String>>>>,
}

/// What an operator would write of the one place for backups.
fn place_for_backups(archiving: &Archiving) -> TargetSettings {
    let schedule = |text: &str| text.parse().expect("a schedule");
    TargetSettings {
        name: "main".into(),
        url: "s3://simulated".into(),
        options: BTreeMap::new(),
        credentials: Credentials::default(),
        recipients: Recipients::default(),
        log: true,
        full: schedule(archiving.full),
        flush_interval: Duration::from_millis(archiving.flush),
        flush_bytes: archiving.flush_bytes,
        // Packing a large object takes two threads that wait for each other.
        merge_interval: Duration::ZERO,
        bandwidth: None,
        durable: true,
        care: Care {
            verify: schedule("*/5 * * * *"),
            level: Level::Chain,
            identity_file: None,
            keep: None,
            prune: schedule("0 4 * * *"),
        },
        drill: None,
    }
}

/// One machine.
pub(crate) struct Machine {
    pub(crate) place: Place,
    pub(crate) log: MemoryLog,
    pub(crate) mood: DiskMood,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) skew: i64,
    /// Until when its process stands still.
    pub(crate) paused_until: u64,
    /// When its process is started again; `None` if it runs, or is not to.
    pub(crate) back_at: Option<u64>,
    /// A planted bug: it says that it has synced, and has not.
    pub(crate) lies: bool,
    /// The next sync of the log fails.
    disk_fails: bool,
    /// Counts the processes.
    pub(crate) lives: u64,
    /// Set while a process may end by a failure of its disk.
    was_failed: bool,
    /// Set from damage to its disk until that is wiped: its process may refuse to serve.
    pub(crate) is_damaged: bool,
    /// Its disk was emptied: what runs here from then on asks to be taken in.
    pub(crate) was_emptied: bool,
    /// When its disk lost something that it had, the last time.
    pub(crate) harmed_at: Option<u64>,
    /// Set once the process that was told to end has.
    ended: Option<Arc<AtomicBool>>,
    host: SimulatedHost,
    /// The object store as this machine reaches it.
    store: Arc<dyn ObjectStore>,
    engines: MemoryEngines,
    folder: PathBuf,
    random: SmallRng,
    /// When the orders that wait for the disk are done.
    due: VecDeque<u64>,
    process: Option<Process>,
}

impl Machine {
    pub(crate) fn new(place: Place, home: &Path, seed: u64, mood: DiskMood, store: &Store) -> Self {
        Self {
            place,
            log: MemoryLog::held(),
            mood,
            skew: 0,
            paused_until: 0,
            back_at: None,
            lies: false,
            disk_fails: false,
            lives: 0,
            was_failed: false,
            is_damaged: false,
            was_emptied: false,
            harmed_at: None,
            ended: None,
            host: SimulatedHost::new(seed),
            store: store.line(place),
            engines: MemoryEngines::default(),
            folder: home.join(format!("n{}", place + 1)),
            random: SmallRng::seed_from_u64(seed ^ 0xD15C),
            due: VecDeque::new(),
            process: None,
        }
    }

    fn config(&self, settings: &Settings) -> NodeConfig {
        let name = |place: Place| format!("n{}", place + 1);
        let founders: BTreeMap<_, _> = (0..settings.founders).map(|place| (name(place), address(place))).collect();
        let origin = if self.place < settings.founders && !self.was_emptied {
            Origin::FirstMembers(founders)
        } else {
            // Whoever of them is a member by then.
            let addresses = (0..MACHINES).filter(|place| *place != self.place).map(address).collect();
            Origin::Join(Join { addresses, votes: true, replaces: None })
        };
        let member = Member {
            name: name(self.place),
            peer_addr: address(self.place),
            client_url: format!("http://{}", name(self.place)),
            ..Member::default()
        };
        let raft = RaftConfig {
            data_dir: self.folder.clone(),
            timers: settings.timers,
            log: LogConfig { medium: LogMedium::Memory(self.log.clone()), ..LogConfig::default() },
            state: StateConfig::new(settings.overlay_bytes, 16 * 1024),
            engine_cache_bytes: 1024 * 1024,
            snapshot_log_bytes: settings.snapshot_log_bytes,
            catchup_bytes_per_second: 50 * 1024 * 1024,
            engines: Engines::Memory(self.engines.clone()),
        };
        let stores = Stores::Given(Arc::clone(&self.store));
        let places = settings.archive.iter().map(place_for_backups).collect();
        let archive = ArchiveConfig { places, stores, ..ArchiveConfig::default() };
        let policy = MemberPolicy::default();
        NodeConfig { data_dir: self.folder.clone(), member, origin, policy, raft, archive }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// Why the node can't be opened.
    pub(crate) fn boot(&mut self, now: u64, settings: &Settings, outbox: &Outbox) -> Result<(), String> {
        assert!(self.process.is_none(), "one process at a time");
        let config = self.config(settings);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        self.tell_host(now);
        let _host = self.host.enter();
        let inside = runtime.enter();
        let node = Node::open(&config, outbox.transport(self.place)).map_err(|error| error.to_string())?;
        let (started, starting) = (Arc::new(Mutex::new(None)), node.clone());
        let told = Arc::clone(&started);
        runtime.spawn(async move {
            let result = starting.start(&config, &Metrics::new()).await;
            *told.lock() = Some(result.map_err(|error| error.to_string()));
        });
        let (handler, epoch) = (node.peer_handler(), quorate::clock::now());
        drop(inside);
        let threads = LocalSet::new();
        self.process =
            Some(Process { node, handler, threads, runtime, epoch, begun_at: now, pipes: BTreeMap::new(), started });
        self.lives += 1;
        (self.back_at, self.paused_until) = (None, 0);
        Ok(())
    }

    fn tell_host(&self, now: u64) {
        let wall = (WALL_BEGIN + now).saturating_add_signed(self.skew);
        self.host.set_wall(WallTime::new(wall));
        self.host.set_pause(Duration::from_millis(self.mood.work));
    }

    /// The next sync of the log fails, or one of the next batches of the state: then a checkpoint ends in its middle.
    pub(crate) fn fail_disk(&mut self) {
        self.disk_fails = self.random.random_bool(0.5);
        if !self.disk_fails {
            let batch = self.random.random_range(1..=CHECKPOINT_BATCHES);
            self.engines.all().iter().for_each(|engine| engine.fail(FaultPoint::Commit, batch));
        }
    }

    /// What is to fail and has not does not fail any more.
    pub(crate) fn spare_disk(&mut self) {
        self.disk_fails = false;
        self.engines.all().iter().for_each(|engine| engine.fail(FaultPoint::Commit, u64::MAX));
    }

    /// Whether a process may end for this reason: its disk has failed.
    pub(crate) fn may_end(&self, reason: &str) -> bool {
        self.was_failed || reason.contains(INJECTED)
    }

    /// Tells the process to end; [`Self::has_ended`] says when it has.
    pub(crate) fn stop(&mut self) {
        let (ended, told) = (Arc::new(AtomicBool::new(false)), self.ended.is_some());
        let tell = Arc::clone(&ended);
        let telling = self.within(|node, runtime| {
            let node = node.clone();
            if !told {
                runtime.spawn(async move {
                    node.hand_over().await;
                    node.stop().await;
                    tell.store(true, Ordering::Relaxed);
                });
            }
        });
        if telling.is_some() && !told {
            self.ended = Some(ended);
        }
    }

    /// Whether the process was told to end and has.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.load(Ordering::Relaxed))
    }

    /// The process is gone at once.
    pub(crate) fn crash(&mut self, how: Crash) {
        let Some(process) = self.process.take() else { return };
        let _host = self.host.enter();
        let Process { node, handler, threads, runtime, .. } = process;
        {
            let _inside = runtime.enter();
            drop((node, handler, threads));
        }
        drop(runtime);
        // What was to begin never does.
        drop(self.host.take_threads());
        let (keep_log, keep_state) = match how {
            Crash::Kill => (usize::MAX, usize::MAX),
            Crash::PowerCut(part) => {
                let part = part as usize;
                (self.log.unsynced() * part / 1_000, self.random.random_range(0..=part.div_ceil(100)))
            }
        };
        self.log.crash(keep_log);
        for engine in self.engines.all() {
            engine.crash(keep_state);
        }
        self.due.clear();
        (self.disk_fails, self.was_failed, self.ended) = (false, false, None);
    }

    /// The disk is empty from now on; the process must be gone.
    pub(crate) fn wipe(&mut self, now: u64) {
        assert!(self.process.is_none(), "a process uses the disk");
        (self.was_emptied, self.harmed_at) = (true, Some(now));
        self.log = MemoryLog::held();
        self.engines = MemoryEngines::default();
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder).expect("the folder can be removed");
        }
    }

    /// Damages the disk; the process must be gone. `false` if there was nothing to damage.
    pub(crate) fn damage(&mut self, what: Damage, now: u64) -> bool {
        assert!(self.process.is_none(), "a process uses the disk");
        let mut snapshots = self.snapshots();
        let newest = snapshots.pop();
        match (what, newest) {
            (Damage::NoLog, _) => self.log = MemoryLog::held(),
            (Damage::NoState, _) => self.engines = MemoryEngines::default(),
            (Damage::NeitherStateNorSnapshots, newest) => {
                self.engines = MemoryEngines::default();
                snapshots.iter().chain(&newest).for_each(|file| std::fs::remove_file(file).expect("a file"));
            }
            (_, None) => return false,
            (Damage::NoSnapshot, Some(newest)) => std::fs::remove_file(newest).expect("a file"),
            (Damage::ShortSnapshot | Damage::FlippedSnapshot, Some(newest)) => {
                let mut bytes = std::fs::read(&newest).expect("a file");
                let at = self.random.random_range(0..bytes.len());
                if what == Damage::ShortSnapshot {
                    bytes.truncate(at);
                } else {
                    bytes[at] ^= 1 << self.random.random_range(0..8);
                }
                std::fs::write(&newest, bytes).expect("a file");
            }
        }
        (self.is_damaged, self.harmed_at) = (true, Some(now));
        true
    }

    /// Its snapshot files, the newest last.
    fn snapshots(&self) -> Vec<PathBuf> {
        let Ok(folder) = std::fs::read_dir(self.folder.join("snapshots")) else { return Vec::new() };
        let files = folder.map(|entry| entry.expect("a folder in memory").path());
        let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "snapshot")).collect();
        let position = |file: &PathBuf| -> Vec<u64> {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            name.split('-').filter_map(|number| number.parse().ok()).collect()
        };
        files.sort_by_key(position);
        files
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.process.as_ref().map(|process| &process.node)
    }

    /// How the start of this process ended; `None` while it has not.
    pub(crate) fn started(&self) -> Option<Result<(), String>> {
        self.process.as_ref().and_then(|process| process.started.lock().clone())
    }

    /// Runs something as if from within the process, without letting time pass there.
    pub(crate) fn within<T>(&self, work: impl FnOnce(&Node, &Runtime) -> T) -> Option<T> {
        let process = self.process.as_ref()?;
        let _host = self.host.enter();
        let _inside = process.runtime.enter();
        Some(work(&process.node, &process.runtime))
    }

    /// Gives a request to the process; `false` if there is none.
    pub(crate) fn receive(&mut self, parcel: &Parcel, outbox: &Outbox) -> bool {
        if let Some(pipe) = parcel.pipe {
            return self.receive_in_order(pipe, parcel, outbox);
        }
        let Some(process) = &self.process else { return false };
        let (handler, outbox, parcel) = (Arc::clone(&process.handler), outbox.clone(), parcel.clone());
        self.within(|_, runtime| {
            runtime.spawn(async move {
                let Load::Request(channel, request) = &parcel.load else { return };
                let answer = handler.handle(*channel, request.clone()).await;
                outbox.answer(&parcel, answer);
            })
        });
        true
    }

    fn receive_in_order(&mut self, pipe: u64, parcel: &Parcel, outbox: &Outbox) -> bool {
        let host = self.host.clone();
        let Some(process) = &mut self.process else { return false };
        let _host = host.enter();
        let _inside = process.runtime.enter();
        let queue = process.pipes.entry(pipe).or_insert_with(|| {
            let (queue, mut parcels) = mpsc::unbounded_channel::<Parcel>();
            let (handler, outbox) = (Arc::clone(&process.handler), outbox.clone());
            process.runtime.spawn(async move {
                while let Some(parcel) = parcels.recv().await {
                    let Load::Request(channel, request) = &parcel.load else { return };
                    let answer = handler.handle(*channel, request.clone()).await;
                    outbox.answer(&parcel, answer);
                }
            });
            queue
        });
        queue.send(parcel.clone()).is_ok()
    }

    /// Lets the disk do what is due.
    fn drive_disk(&mut self, now: u64) {
        while self.due.len() < self.log.orders() {
            let done = now + self.random.random_range(self.mood.sync.0..=self.mood.sync.1);
            // The writer does one after the other.
            let done = self.due.back().map_or(done, |before| done.max(*before));
            self.due.push_back(done);
        }
        while self.due.front().is_some_and(|due| *due <= now) {
            self.due.pop_front();
            if self.disk_fails {
                (self.disk_fails, self.was_failed) = (false, true);
                self.log.fail("the simulated disk failed");
                self.due.clear();
                return;
            }
            if self.lies {
                self.log.pretend();
            } else {
                self.log.complete();
            }
        }
    }

    /// Lets the process live up to the moment `now`.
    pub(crate) fn run(&mut self, now: u64) {
        if self.process.is_none() || now < self.paused_until {
            return;
        }
        self.tell_host(now);
        let host = self.host.clone();
        let _host = host.enter();
        let Some(process) = self.process.take() else { return };
        {
            let _inside = process.runtime.enter();
            self.drive_disk(now);
        }
        let until = process.epoch + Duration::from_millis(now - process.begun_at);
        let woke_up = now == self.paused_until && now > 0;
        for begin in host.take_threads() {
            process.threads.spawn_local(begin());
        }
        process.threads.block_on(&process.runtime, async move {
            if woke_up {
                // It slept: the clock jumps, and timers that ran out meanwhile run out now.
                tokio::time::advance(until.saturating_duration_since(quorate::clock::now())).await;
            }
            tokio::time::sleep_until(until).await;
        });
        self.process = Some(process);
    }
}
