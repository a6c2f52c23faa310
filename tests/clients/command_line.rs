//! What the program prints and how it exits: golden scripts over the real binary and a server with fixed answers.
//!
//! `UPDATE_GOLDENFILES=1 cargo test --test clients` rewrites the expected outputs; read the difference before keeping it.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::process::{Command, Output, Stdio};

use crate::fake::{Reaction, Request, Server, json, nobody, problem};

const RECORD: &str = r#""value":"hello","create_revision":3,"mod_revision":7,"version":2,"lease":0"#;

/// A store that always holds the same.
fn react(request: &Request) -> Reaction {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let put = r#"{"key":"greeting","create_revision":7,"mod_revision":7,"version":1,"lease":0}"#;
    match (request.method.as_str(), path) {
        ("PUT", "/v1/kv/old") => json(200, &put.replace("\"version\":1", "\"version\":4")),
        ("PUT", "/v1/kv/taken") => problem(412, "precondition_failed", false, "not_applied"),
        ("PUT", "/v1/kv/lost") => problem(504, "outcome_unknown", true, "unknown"),
        ("PUT", _) => json(201, put),
        ("GET", "/v1/kv/greeting") => {
            let headers = [
                ("quorate-revision", "9"),
                ("etag", "\"7\""),
                ("quorate-create-revision", "3"),
                ("quorate-version", "2"),
                ("quorate-lease", "0"),
            ];
            let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Reaction::Answer { status: 200, headers: headers.into(), body: b"hello".into() }
        }
        ("GET" | "DELETE", "/v1/kv/absent") => problem(404, "key_not_found", false, "not_applied"),
        ("DELETE", "/v1/backups/main") => {
            json(200, r#"{"name":"main","dry_run":false,"declared":null,"store":null,"warnings":[]}"#)
        }
        ("DELETE", "/v1/kv") => json(200, r#"{"deleted":3,"revision":8}"#),
        ("DELETE", _) => json(200, r#"{"deleted":1,"revision":8}"#),
        ("GET", "/v1/kv") if query.contains("keys_only=true") => json(
            200,
            r#"{"revision":9,"count":1,"items":[{"key":"greeting","create_revision":3,"mod_revision":7,"version":2,"lease":0}]}"#,
        ),
        ("GET", "/v1/kv") if query.contains("cursor=") => {
            json(200, &format!(r#"{{"revision":9,"count":2,"items":[{{"key_base64":"//8=",{RECORD}}}]}}"#))
        }
        ("GET", "/v1/kv") if query.starts_with("start=none") => json(200, r#"{"revision":9,"count":0,"items":[]}"#),
        ("GET", "/v1/kv") => {
            json(200, &format!(r#"{{"revision":9,"count":2,"items":[{{"key":"a\tb",{RECORD}}}],"next_cursor":"c"}}"#))
        }
        ("POST", "/v1/txn") => json(
            200,
            &format!(
                r#"{{"succeeded":true,"revision":9,"responses":[{{"put":{put}}},{{"delete":{{"deleted":2}}}},
                    {{"get":{{"count":1,"items":[{{"key":"greeting",{RECORD}}}]}}}}]}}"#
            ),
        ),
        ("GET", "/v1/backups") => json(200, BACKUPS),
        ("POST", "/v1/backups") => json(201, DECLARED),
        ("PATCH", "/v1/backups/main") => json(200, &DECLARED.replace("\"dry_run\":false", "\"dry_run\":true")),
        ("GET", "/v1/status") => json(200, STATUS),
        ("GET", "/v1/cluster") => json(200, CLUSTER),
        ("POST", "/v1/cluster/leader") if request.body == b"{\"to\":1}" => json(200, &leader(1, false)),
        ("POST", "/v1/cluster/leader") => problem(409, "conflict", false, "not_applied"),
        _ => problem(404, "not_found", false, "not_applied"),
    }
}

/// What an order to move the leadership is answered with.
fn leader(id: u64, moved: bool) -> String {
    format!(r#"{{"leader":{{"id":{id},"name":"n{id}","client_url":"http://h{id}:7480"}},"term":2,"moved":{moved}}}"#)
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// A place that is well but for a drill, and one that was declared in another cluster.
const BACKUPS: &str = r#"{"backups":[
    {"name":"main","url":"s3://bucket/prefix","encrypted":true,"durable":true,"active":2,"candidates":[1,2,3],"archived_index":90,
     "archived_revision":80,"rpo_ms":700,"full":null,"full_under_way":true,"objects":7,"bytes":7000,"troubles":[],"origin":"api",
     "declared":{"name":"main","url":"s3://bucket/prefix"},"idle":null,"errors":0,"held_entries":3,
     "proofs":{"verified_unix_ms":null,"read_unix_ms":null,"drilled_unix_ms":null,"drills_here":true,"drill_error":"no room",
               "failed":{"time_unix_ms":1700000000000,"finding":"drill: x is missing"}}},
    {"name":"old","url":"file:///srv/old","encrypted":true,"durable":false,"active":null,"candidates":[],"archived_index":null,
     "archived_revision":null,"rpo_ms":null,"full":null,"full_under_way":false,"objects":0,"bytes":0,"troubles":[],"origin":"api",
     "declared":{"name":"old","url":"file:///srv/old"},"idle":"it was declared in the cluster 7","errors":0,"held_entries":null,
     "proofs":null}]}"#;

/// What a change of what is declared answers.
const DECLARED: &str = r#"{"name":"main","dry_run":false,"declared":{"name":"main","url":"s3://bucket/prefix"},
    "store":{"made":true,"can_delete":false,"skew_ms":12,"clusters":[]},"warnings":["objects are NOT encrypted"]}"#;

const STATUS: &str = r#"{"name":"n1","id":1,"cluster_id":5,"version":"0.1.0","role":"leader",
    "leader":{"id":1,"name":"n1","client_url":"http://h1:7480"},"term":2,"last_log_index":12,"commit_index":12,
    "applied_index":11,"snapshot_index":null,"purged_index":null,"revision":9,"compacted_revision":0,"state_hash":"00",
    "sizes":{"log_bytes":1,"state_bytes":2,"overlay_bytes":3,"snapshot_bytes":4},"ready":true,"not_ready_reason":null,
    "peer_addr":"h1:7481","client_url":"http://h1:7480","zone":"","timers":
    {"heartbeat_ms":50,"election_min_ms":150,"election_max_ms":300}}"#;

const CLUSTER: &str = r#"{"cluster_id":5,"term":2,"leader":1,"view":"leader","members":[
    {"id":1,"name":"n1","role":"voter","zone":"dc1","peer_addr":"h1:7481","client_url":"http://h1:7480","reachable":true,
     "matched_index":12,"lag_entries":0,"rtt_ms":0.25},
    {"id":2,"name":"n2","role":"learner","zone":"","peer_addr":"h2:7481","client_url":"","reachable":false,
     "matched_index":null,"lag_entries":null,"rtt_ms":null}],
    "quorum":{"voters":1,"needed":1,"reachable":1,"spare":0}}"#;

/// Runs `quorate …` lines of a script. `feed TEXT` is what the next one finds on its standard input, `file NAME TEXT` a
/// file in its working directory, `half NAME FILE` the first half of another one.
struct Runner {
    server: Server,
    nobody: String,
    directory: tempfile::TempDir,
    input: Option<String>,
}

impl Runner {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { server: Server::start(|_, request| react(request)), nobody: nobody(), directory, input: None }
    }

    fn quorate(&mut self, arguments: &[String]) -> std::io::Result<Output> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env_clear().env("QUORATE_ENDPOINT", &self.server.url).current_dir(self.directory.path());
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let input = self.input.take().unwrap_or_default();
        // A command that does not read its input may be gone already.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let line = command.name.replace("NOBODY", &self.nobody).replace("SERVER", &self.server.url);
        let line = line.replace("FIXTURES", FIXTURES);
        let mut words = words(&line);
        let arguments = words.split_off(1);
        match (words.concat().as_str(), &arguments[..]) {
            ("feed", [text]) => {
                self.input = Some(text.clone());
                return Ok(String::new());
            }
            ("file", [name, text]) => {
                std::fs::write(self.directory.path().join(name), text.replace("\\n", "\n"))?;
                return Ok(String::new());
            }
            // Cut in the middle, as by an interrupted copy.
            ("half", [name, original]) => {
                let bytes = std::fs::read(original)?;
                std::fs::write(self.directory.path().join(name), &bytes[..bytes.len() / 2])?;
                return Ok(String::new());
            }
            ("quorate", _) => {}
            _ => return Err(format!("unknown command {line}").into()),
        }
        let output = self.quorate(&arguments)?;
        let mut text = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8(output.stderr)?;
        if !text.is_empty() && !text.ends_with('\n') {
            text += "⏎\n";
        }
        for line in errors.lines() {
            // How many attempts fit into a deadline is chance.
            let line = match line
                .split_once(" attempted)")
                .and_then(|(before, after)| Some((before.rsplit_once('(')?.0, after)))
            {
                Some((before, after)) => format!("{before}(… attempted){after}"),
                None => line.to_owned(),
            };
            writeln!(text, "stderr: {line}")?;
        }
        match output.status.code() {
            Some(0) => {}
            Some(code) => writeln!(text, "exit: {code}")?,
            None => writeln!(text, "killed: {}", output.status)?,
        }
        Ok(text.replace(&self.server.url, "SERVER").replace(&self.nobody, "NOBODY").replace(FIXTURES, "FIXTURES"))
    }
}

/// The words of a line, as a shell would split it that knows spaces and single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().expect("there is always one word").push(other),
        }
    }
    words
}

fn script(name: &str) {
    let path = format!("{}/tests/clients/scripts/{name}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut Runner::new(), path).expect("the script can be read");
}

#[test]
fn help_texts() {
    script("help");
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    script("usage");
}

#[test]
fn outputs_as_text_and_json() {
    script("output");
}

#[test]
fn histories_are_judged_and_what_is_none_is_refused() {
    script("history");
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    let server = Server::start(|_, request| react(request));
    for arguments in [&["get", "greeting"][..], &["list"], &["--help"], &["completions", "bash"], &["status"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env_clear().env("QUORATE_ENDPOINT", &server.url).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

/// A child that is killed with its test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn load_is_reported_for_people_and_for_programs() {
    let mut echo = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let mut echo = Child(echo.args(["bench", "echo-server"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut url = String::new();
    std::io::BufReader::new(echo.0.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
    let bench = |kind: &str, endpoint: &str, format: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env_clear().args(["bench", kind, "--endpoint", endpoint, "--output", format]);
        command.args(["--clients", "3", "--duration", "500ms", "--keys", "10"]).output().unwrap()
    };
    for kind in ["put", "get", "stale", "mixed", "txn"] {
        let output = bench(kind, url.trim(), "json");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
        assert_eq!((&report["kind"], &report["clients"]), (&kind.into(), &3.into()));
        assert!(report["operations"].as_u64() > Some(0) && report["latency_us"]["p99"].as_u64() > Some(0), "{report}");
    }
    let text = String::from_utf8(bench("mixed", url.trim(), "text").stdout).unwrap();
    // The time that it took, which on a busy machine is more than it was to take.
    let took = text
        .strip_prefix("mixed: 3 clients, 10 keys, 256-byte values, ")
        .and_then(|rest| rest.split_once(" s\n  rate "));
    assert!(took.is_some_and(|(took, _)| took.parse::<f64>().is_ok_and(|took| took >= 0.5)), "{text}");
    let output = bench("put", &nobody(), "text");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "quorate: no request succeeded\n");
}

#[test]
fn settings_come_from_flags_over_environment_over_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.toml");
    std::fs::write(&file, "name = 'from-file'\ndata_dir = 'd'\nrtt = '7s'\nzone = 'z'\n").unwrap();
    // Each refusal names the value that won.
    let refusal = |environment: &[(&str, &str)], flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env_clear().envs(environment.iter().copied()).arg("serve").arg("--config").arg(&file).args(flags);
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(refusal(&[], &[]), "quorate: --rtt is 7s; it must be 1ms to 2s\n");
    let environment = [("QUORATE_RTT", "8s")];
    assert_eq!(refusal(&environment, &[]), "quorate: --rtt is 8s; it must be 1ms to 2s\n");
    assert_eq!(refusal(&environment, &["--rtt", "9s"]), "quorate: --rtt is 9s; it must be 1ms to 2s\n");
}
