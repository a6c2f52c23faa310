//! docs/operations.md against the program: every metric a node tells and every flag of `serve` stands there, and no other.
//!
//! Method: a cluster does a little of everything, then all its `/metrics` are read; the flags come from `serve --help`.
//! Leaves out: whether what the document says of them is right.

#[path = "support/http.rs"]
#[allow(dead_code, reason = "only plain requests are needed here")]
mod http;
mod support;

use std::collections::BTreeSet;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::Http;

const DOCUMENT: &str = include_str!("../docs/operations.md");

/// Told only behind more than a small test does: a log that was purged, a place for backups.
const SELDOM: &[&str] = &["quorate_raft_purged_index", "quorate_backup_exposure_seconds"];

/// The first cells of the rows of the table under this heading cell, without their quotes.
fn first_cells(heading: &str) -> BTreeSet<String> {
    let table = DOCUMENT.split_once(&format!("\n| {heading} |")).expect("the document has the table").1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_start_matches("| `").split('`').next().unwrap_or_default().to_owned()).collect()
}

/// The names of the series in an OpenMetrics text, by which one asks for them.
fn series(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = types.map(|(name, kind)| match kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.to_owned(),
    });
    names.filter(|name| name.starts_with("quorate_")).collect()
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_exists() {
    let cluster = support::cluster(3).await;
    for node in &cluster.nodes {
        let http = Http::new(&node.url);
        http.put("key", "value").await;
        assert_eq!(http.get("/v1/kv/key").await.status(), 200);
        assert_eq!(http.get("/v1/snapshot").await.status(), 200);
        // A stranger on the peer port is turned away, and counted.
        let mut stranger = TcpStream::connect(&node.node.status().member.peer_addr).await.unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _ = stranger.read_to_end(&mut Vec::new()).await;
    }
    let mut told = BTreeSet::new();
    for node in &cluster.nodes {
        told.extend(series(&Http::new(&node.url).get("/metrics").await.text().await.unwrap()));
    }
    let documented = first_cells("series");
    assert_eq!(told.difference(&documented).collect::<Vec<_>>(), [""; 0], "not in docs/operations.md");
    let gone = documented.difference(&told).filter(|name| !SELDOM.contains(&name.as_str()));
    assert_eq!(gone.collect::<Vec<_>>(), [""; 0], "in docs/operations.md, but no node tells them");
}

#[test]
fn every_flag_of_serve_is_documented_and_every_documented_one_exists() {
    let help = Command::new(env!("CARGO_BIN_EXE_quorate")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (own, _) = help.split_once("Global options:").expect("the global options stand last");
    let words = own
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("-h, ").trim_start_matches("-V, ").split(' ').next());
    let flags: BTreeSet<String> = words
        .filter(|word| word.starts_with("--") && !["--help", "--version"].contains(word))
        .map(str::to_owned)
        .collect();
    let documented = first_cells("flag of `serve`");
    assert_eq!(flags.difference(&documented).collect::<Vec<_>>(), [""; 0], "not in docs/operations.md");
    assert_eq!(
        documented.difference(&flags).collect::<Vec<_>>(),
        [""; 0],
        "in docs/operations.md, but unknown to `serve`"
    );
}
