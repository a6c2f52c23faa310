//! Room for a drill: on the disk, and beside a node that serves.
//!
//! Guarantees: a drill that would not fit is refused before anything is fetched; one that a node has started never takes the
//! last of a disk that the node's log may share, is not begun where memory is short, is the first to go where it gets short,
//! and ends with the node. Leaves out: what others write meanwhile, and limits of memory below those of the machine.

use std::path::Path;

use crate::backup::plan::Plan;
use crate::cli::Failure;
use crate::cli::facts::size;
#[cfg(target_os = "linux")]
use crate::cli::failure;
use crate::raft::stand_back;

/// What is restored takes this many times its size unpacked: as it was fetched, in the state that is built, and in the
/// snapshot of that.
const COPIES: u64 = 3;

/// What is needed beside that, in bytes: logs, and what a node takes when it is empty.
const SMALL_CHANGE: u64 = 64 * 1024 * 1024;

/// A drill beside a node leaves one part of so many of the disk free.
const SPARED_PART: u64 = 10;

/// Beside a node a drill is begun only where so much memory is left, in bytes: more than twice what it sets aside.
#[cfg(target_os = "linux")]
const MEMORY_NEEDED: u64 = 512 * 1024 * 1024;

/// Of all processes this one is to be ended first where memory is short: the greatest value there is.
#[cfg(target_os = "linux")]
const OOM_SCORE_ADJ: &str = "1000";

/// Refuses a drill for which the disk has no room.
pub(super) fn check(folder: &Path, plan: &Plan, by_node: bool) -> Result<(), Failure> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|error| Failure::usage(format!("can't tell how much room {} has: {error}", folder.display())))?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let spared = if by_node { bytes(disk.f_blocks) / SPARED_PART } else { 0 };
    match enough(plan.plain_bytes(), bytes(disk.f_bavail), spared) {
        Ok(()) => Ok(()),
        Err(lacking) => Err(Failure::unavailable(format!(
            "the disk of {} has no room for a drill: it lacks {}; make room, or choose another folder with --scratch",
            folder.display(),
            size(lacking)
        ))),
    }
}

/// By how many bytes the room is too small.
fn enough(plain_bytes: u64, available: u64, spared: u64) -> Result<(), u64> {
    let needed = plain_bytes.saturating_mul(COPIES).saturating_add(SMALL_CHANGE).saturating_add(spared);
    match needed.saturating_sub(available) {
        0 => Ok(()),
        lacking => Err(lacking),
    }
}

/// Has this process give way to the node that has started it, of this process id, and end with it.
pub(super) fn give_way(parent: u32) -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    {
        let end = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        end.map_err(|error| Failure::unavailable(format!("can't end with the node that started this: {error}")))?;
        // It may have ended before that was said.
        let now = rustix::process::getppid().map(|now| now.as_raw_nonzero().get().unsigned_abs());
        if now != Some(parent) {
            return Err(Failure::unavailable("the node that started this has ended"));
        }
        if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
            failure::note(&format!("this process can't be made the first to go where memory is short: {error}"));
        }
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
        if let Some(bytes) = memory.filter(|bytes| *bytes < MEMORY_NEEDED) {
            return Err(Failure::unavailable(format!(
                "memory is short: {} are left, and a drill beside a node needs {}; it is tried again at its next time",
                size(bytes),
                size(MEMORY_NEEDED)
            )));
        }
    }
    // The threads that are begun from here on have the same priority.
    stand_back();
    Ok(())
}

/// The memory that can be had without swapping, in bytes, as `/proc/meminfo` tells it.
#[cfg(target_os = "linux")]
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_memory_that_is_left_is_read_as_the_system_tells_it() {
        assert_eq!(available("MemTotal:   7 kB\nMemAvailable:     1024 kB\n"), Some(1024 * 1024));
        assert_eq!(available("MemTotal: 7 kB\n"), None);
        assert!(available(&std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap() > 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_drill_whose_node_has_ended_before_it_could_say_so_is_not_made() {
        let error = give_way(u32::MAX).unwrap_err();
        assert!(error.to_string().contains("has ended"), "{error}");
    }

    #[test]
    fn a_drill_needs_room_for_its_copies_and_leaves_what_is_spared() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(enough(10 * MIB, 94 * MIB, 0), Ok(()));
        assert_eq!(enough(10 * MIB, 93 * MIB, 0), Err(MIB));
        assert_eq!(enough(10 * MIB, 94 * MIB, 6 * MIB), Err(6 * MIB));
        assert!(enough(u64::MAX, u64::MAX - 1, 0).is_err());
    }
}
