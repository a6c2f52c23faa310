//! Notices calls into sled that never come back but keep a processor busy.
//!
//! sled waits for a leaf to become the right one by looking again, for ever if the disk holds another one than its metadata
//! says (docs/upstream/sled-stale-slab.md). No time limit tells that from a slow disk; processor time does: a call that waits for
//! a disk or a lock takes none. So each call leaves a note, and a thread looks at those that last.
//!
//! Guarantees: a call is only called endless if its thread has taken the limit of processor time within that one call.
//! Costs two additions a call, and a thread that looks once a second. Leaves out: calls that wait and take no time, what
//! is done about it, and systems without `/proc`, where nothing is noticed.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use thread_local::ThreadLocal;

use crate::clock;

/// How often the thread looks, unless the limit is shorter.
const LOOK: Duration = Duration::from_secs(1);

/// What no thread has, to the system.
const UNKNOWN: u32 = 0;

thread_local! {
    static OWN: OnceCell<u32> = const { OnceCell::new() };
}

fn own() -> u32 {
    OWN.with(|own| *own.get_or_init(|| clock::own_thread().unwrap_or(UNKNOWN)))
}

/// What a thread is at. A note outlives its thread and is taken over by another one.
#[derive(Debug, Default)]
struct Note {
    /// Calls begun and calls ended together: odd within a call.
    turns: AtomicU64,
    thread: AtomicU32,
}

/// The calls of all threads. Watched as long as it lives.
#[derive(Debug)]
pub(super) struct Calls {
    notes: Arc<ThreadLocal<Note>>,
    /// Dropped, it ends the thread.
    _watching: SyncSender<()>,
}

/// A call is under way until this is dropped.
#[must_use]
pub(super) struct Call<'a>(&'a Note);

impl Calls {
    /// Starts to watch. `found` is called once at most, on a thread of its own, with the call still under way.
    pub(super) fn watch(limit: Duration, found: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let notes = Arc::new(ThreadLocal::new());
        let (watching, end) = sync_channel::<()>(0);
        let watched = Arc::clone(&notes);
        thread::Builder::new().name("sled-watch".to_owned()).spawn(move || {
            let mut lasting = HashMap::new();
            while end.recv_timeout(LOOK.min(limit)) == Err(RecvTimeoutError::Timeout) {
                if any_endless(&watched, &mut lasting, limit) {
                    return found();
                }
            }
        })?;
        Ok(Self { notes, _watching: watching })
    }

    pub(super) fn begin(&self) -> Call<'_> {
        let note = self.notes.get_or_default();
        note.thread.store(own(), Ordering::Relaxed);
        // The thread is seen with the call.
        note.turns.fetch_add(1, Ordering::Release);
        Call(note)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.turns.fetch_add(1, Ordering::Release);
    }
}

/// `lasting`: the calls that were under way at the last look, by their thread, with the time that it had taken when the
/// call was first seen.
fn any_endless(notes: &ThreadLocal<Note>, lasting: &mut HashMap<u32, (u64, Duration)>, limit: Duration) -> bool {
    for note in notes.iter() {
        let turns = note.turns.load(Ordering::Acquire);
        let thread = note.thread.load(Ordering::Relaxed);
        if turns.is_multiple_of(2) || thread == UNKNOWN {
            continue;
        }
        let Some(taken) = clock::thread_cpu(thread) else { continue };
        let (seen, since) = lasting.entry(thread).or_insert((turns, taken));
        if *seen != turns {
            (*seen, *since) = (turns, taken);
        } else if taken.saturating_sub(*since) >= limit {
            return true;
        }
    }
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::Receiver;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn watched() -> (Calls, Receiver<()>) {
        let (found_in, found) = sync_channel(1);
        (Calls::watch(LIMIT, move || found_in.send(()).unwrap()).unwrap(), found)
    }

    #[test]
    fn a_call_that_only_takes_processor_time_is_endless() {
        let (calls, found) = watched();
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _call = calls.begin();
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let told = found.recv_timeout(Duration::from_secs(60));
            end.store(true, Ordering::Relaxed);
            told.unwrap();
        });
    }

    #[test]
    fn many_calls_and_one_that_waits_are_not() {
        let (calls, found) = watched();
        let own = clock::own_thread().unwrap();
        let (enough, since) = (AtomicBool::new(false), clock::thread_cpu(own).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let _call = calls.begin();
                while !enough.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(10));
                }
            });
            // Far more than the limit in all, and little in each.
            while clock::thread_cpu(own).unwrap() - since < LIMIT * 5 {
                drop(calls.begin());
            }
            enough.store(true, Ordering::Relaxed);
        });
        drop(calls);
        // The thread ends with what it watched, and with it the other side of this.
        found.recv().unwrap_err();
    }
}
