//! The exposition as a scraper reads it, and what is logged by default.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use super::*;

/// Series with something in each, as a member has them.
fn example() -> Metrics {
    let metrics = Metrics::new();
    metrics.register(|registry| {
        let duration = Histogram::new(latency_buckets());
        duration.observe(0.003);
        registry.register_with_unit("example_duration", "An example", Unit::Seconds, duration);
        let gauge: Gauge = Gauge::default();
        registry.register("example_things", "An example", gauge);
        let counter: Counter = Counter::default();
        registry.register_with_unit("example_read", "An example", Unit::Bytes, counter);
    });
    metrics
}

/// Splits `name{labels} value` or says what is wrong with it.
fn sample(line: &str) -> Result<(&str, &str, f64), String> {
    let (series, value) = line.rsplit_once(' ').ok_or_else(|| format!("no value: {line}"))?;
    let value = value.parse().map_err(|_| format!("no number: {line}"))?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').ok_or_else(|| format!("labels left open: {line}"))?),
        None => (series, ""),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("no name: {line}"));
    }
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (key, value) = label.split_once('=').ok_or_else(|| format!("no label: {line}"))?;
        if !key.chars().all(plain) || value.len() < 2 || !value.starts_with('"') || !value.ends_with('"') {
            return Err(format!("no label: {line}"));
        }
    }
    Ok((name, labels, value))
}

#[test]
fn every_line_is_a_sample_or_a_description_and_the_end_is_marked() {
    let text = example().encode();
    let body = text.strip_suffix("# EOF\n").expect("the end mark is the last line");
    for line in body.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => assert!(
                ["HELP ", "TYPE ", "UNIT "].iter().any(|kind| comment.starts_with(kind)),
                "no description: {line}"
            ),
            None => drop(sample(line).unwrap()),
        }
    }
}

#[test]
fn names_carry_the_prefix_and_the_unit() {
    let text = example().encode();
    let mut types = 0;
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(name.starts_with("quorate_") || name.starts_with("process_"), "{name}");
            assert!(
                kind != "histogram" || name.ends_with("_seconds") || name.ends_with("_bytes"),
                "{name} has no unit"
            );
            types += 1;
        }
        if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').unwrap();
            assert!(name.ends_with(&format!("_{unit}")), "{line}");
        }
        for word in ["_millis", "_ms ", "_micros", "_kb", "_mb"] {
            assert!(!line.contains(word), "base units only: {line}");
        }
    }
    assert!(types > 8, "{types}");
    for line in [
        "quorate_example_read_bytes_total 0",
        "quorate_example_duration_seconds_count 1",
        "quorate_example_duration_seconds_bucket{le=\"0.002\"} 0",
        "quorate_example_duration_seconds_bucket{le=\"0.004\"} 1",
        "quorate_example_duration_seconds_bucket{le=\"+Inf\"} 1",
        concat!("quorate_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_tells_its_memory_time_and_descriptors() {
    let text = Metrics::new().encode();
    let value = |name: &str| {
        let found = text.lines().filter_map(|line| sample(line).ok()).find(|(found, ..)| *found == name);
        found.unwrap_or_else(|| panic!("no {name} in\n{text}")).2
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
    assert!(value("process_cpu_seconds_total") >= 0.0);
    assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") < value("process_max_fds"));
    let age = crate::clock::wall().get() as f64 / 1e3 - value("process_start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "{age} s old");
}

#[test]
fn buckets_rise_within_their_named_ends() {
    let ends = |buckets: Vec<f64>| {
        assert!(buckets.is_sorted_by(|a, b| a < b), "{buckets:?}");
        (buckets[0], buckets[buckets.len() - 1])
    };
    assert_eq!(ends(latency_buckets().collect()), (50e-6, 10.0));
    assert_eq!(ends(size_buckets().collect()), (64.0, f64::from(64 * 1024 * 1024)));
    assert_eq!(ends(count_buckets().collect()), (1.0, 16_384.0));
}

#[test]
fn the_environment_decides_what_is_logged_before_the_default() {
    for (environment, expected) in [(None, "warn"), (Some(""), "warn"), (Some("quorate=debug"), "quorate=debug")] {
        let filter = filter(environment.map(str::to_owned), "warn").unwrap();
        assert_eq!(filter.to_string(), expected, "{environment:?}");
    }
}

#[test]
fn directives_that_are_none_are_named() {
    let environment = filter(Some("quorate=loud".to_owned()), "info").unwrap_err().to_string();
    assert!(environment.starts_with("RUST_LOG=\"quorate=loud\" is not understood: "), "{environment}");
    let default = filter(None, "a=b=c").unwrap_err().to_string();
    assert!(default.starts_with("the log level \"a=b=c\" is not understood: "), "{default}");
}

#[test]
fn logging_is_set_up_once() {
    // Another test of this process may have been first; that does not matter to the second call here.
    let _ = init(LogFormat::Json, "off");
    assert!(matches!(init(LogFormat::Text, "off"), Err(TelemetryError::Twice(_))));
}

#[test]
fn label_values_are_escaped() {
    let metrics = Metrics::new();
    let odd = vec![("peer", LabelText::new("a\\b\"c\nd")), ("plain", LabelText::new("[::1]:7000"))];
    metrics.register(|registry| registry.register("odd", "An example", Info::new(odd)));
    let expected = r#"quorate_odd_info{peer="a\\b\"c\nd",plain="[::1]:7000"} 1"#;
    assert!(metrics.encode().lines().any(|line| line == expected), "{}", metrics.encode());
}
