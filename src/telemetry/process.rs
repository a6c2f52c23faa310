//! The series about the process itself, read from `/proc` whenever they are asked for.
//!
//! Guarantees: the names and meanings of <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>;
//! what the system does not tell (another system than Linux, a hidden `/proc`) is left out, never shown as zero.
//! Leaves out: the runtime's threads and the allocator.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Linux counts the times in `/proc/<pid>/stat` in hundredths of a second on every architecture it shows to programs
/// (`USER_HZ`, proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self` at each scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stat = read("/proc/self/stat").as_deref().and_then(Stat::parse);
        if let Some(stat) = &stat {
            let cpu = ConstCounter::new(stat.cpu_seconds);
            let help = "CPU time of the process, user and system.";
            cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), cpu.metric_type())?)?;
        }
        let boot = read("/proc/stat").and_then(|text| line_value(&text, "btime "));
        let start = stat.zip(boot).map(|(stat, boot)| boot + stat.start_seconds_after_boot);
        let status = read("/proc/self/status");
        let status = |name| status.as_deref().and_then(|text| line_value(text, name)).map(|kib| kib * 1024.0);
        let limits = read("/proc/self/limits").and_then(|text| line_value(&text, "Max open files"));
        let count = |value: usize| value as f64;
        for (name, unit, help, value) in [
            ("process_start_time", Some(Unit::Seconds), "When the process started, since the Unix epoch.", start),
            ("process_resident_memory", Some(Unit::Bytes), "Memory of the process that is in RAM.", status("VmRSS:")),
            ("process_virtual_memory", Some(Unit::Bytes), "Address space of the process.", status("VmSize:")),
            ("process_open_fds", None, "Open file descriptors.", open_descriptors().map(count)),
            ("process_max_fds", None, "The most file descriptors that may be open.", limits),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

/// What `/proc/self/stat` tells.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    start_seconds_after_boot: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, parentheses too.
        let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
        // What follows it is field 3; utime is 14, stime 15, starttime 22 (proc(5)).
        let user: f64 = fields.nth(14 - 3)?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        let start: f64 = fields.nth(22 - 16)?.parse().ok()?;
        let seconds = |ticks: f64| ticks / TICKS_PER_SECOND;
        Some(Self { cpu_seconds: seconds(user + system), start_seconds_after_boot: seconds(start) })
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The number behind a name at the start of a line.
fn line_value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Open descriptors, without the one that counts them.
fn open_descriptors() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_program_name() {
        let rest = "S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 1234 1000000 500 18446744073709551615";
        for name in ["quorate", "a b", "x) (y", ")"] {
            let stat = Stat::parse(&format!("42 ({name}) {rest}"));
            assert_eq!(stat, Some(Stat { cpu_seconds: 3.0, start_seconds_after_boot: 12.34 }), "{name}");
        }
        assert_eq!(Stat::parse("42 (quorate) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_limit_that_is_no_number_is_left_out() {
        let limits = "Max open files            1024                 4096                 files\n";
        assert_eq!(line_value(limits, "Max open files"), Some(1024.0));
        assert_eq!(line_value(&limits.replace("1024", "unlimited"), "Max open files"), None);
    }
}
