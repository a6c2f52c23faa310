//! README's five-minute tour, run as it is printed.
//!
//! Method: every `sh` block of the tour is run by bash against `quorate dev` on a fresh directory, with nothing changed but
//! the ports and the length of the benchmark; each `curl` also prints the status it got, and the statuses are compared.
//! Needs bash and curl, as the tour itself does. Leaves out: what bodies hold; the contract tests look at those.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the `curl` commands of each block are answered with, in the order of the tour.
const STATUSES: [&[u16]; 5] = [&[201, 200], &[200, 200, 412], &[200], &[200, 200, 200, 200], &[200, 200]];
/// How long three nodes on one machine may take to elect a leader.
const READY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at whether they have.
const READY_INTERVAL: Duration = Duration::from_millis(100);
/// Ports of `quorate dev`: two for each of three nodes.
const PORTS: u16 = 6;

/// The `sh` blocks under "Five minutes".
fn tour() -> Vec<String> {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once("## Five minutes").expect("README has the tour");
    let (section, _) = section.split_once("\n## ").expect("something follows the tour");
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or("").to_owned());
    blocks.collect()
}

/// The first of as many neighbouring ports as a cluster takes, all free now.
fn base_port() -> u16 {
    let all_free = |base: &u16| (*base..*base + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    // Below those that the system gives to outgoing connections, so that none is taken before its node listens.
    let start = 22_000 + u16::try_from(std::process::id() % 9_000).expect("below 9,000");
    (start..start + 1_000).step_by(usize::from(PORTS)).find(all_free).expect("six neighbouring ports are free")
}

/// A cluster of three nodes in one process, stopped when the test ends.
struct Cluster {
    process: Child,
    port: u16,
}

impl Cluster {
    fn start(folder: &Path) -> Self {
        let port = base_port();
        let log = fs::File::create(folder.join("dev.log")).expect("the folder takes a file");
        let process = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(["dev", "--port", &port.to_string(), "--data-dir"])
            .arg(folder.join("data"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let mut cluster = Self { process, port };
        cluster.wait_ready(folder);
        cluster
    }

    fn wait_ready(&mut self, folder: &Path) {
        let deadline = Instant::now() + READY_MAX;
        let log = || fs::read_to_string(folder.join("dev.log")).unwrap_or_default();
        for node in 0..3 {
            let url = format!("http://127.0.0.1:{}/readyz", self.port + 2 * node);
            while !curl(&["--fail", "--max-time", "5", &url]).status.success() {
                assert!(self.process.try_wait().is_ok_and(|ended| ended.is_none()), "quorate dev ended:\n{}", log());
                assert!(Instant::now() < deadline, "{url} is not ready after {READY_MAX:?}:\n{}", log());
                thread::sleep(READY_INTERVAL);
            }
        }
    }

    /// Runs a block of the tour as it is printed, but for ports and the length of the benchmark.
    fn run(&self, block: &str, folder: &Path) -> Output {
        let mut script = block.replace("--duration 5s", "--duration 1s");
        for node in 0..3 {
            script = script.replace(&format!(":{}", 7480 + 2 * node), &format!(":{}", self.port + 2 * node));
        }
        // What the tour installs is there already.
        let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with("cargo install")).collect();
        let show_status =
            "curl() { command curl --silent --show-error --write-out '\\nstatus %{http_code}\\n' \"$@\"; }";
        let program = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().expect("a program lies in a folder");
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new("bash")
            .args(["-e", "-c", &format!("{show_status}\n{}", lines.join("\n"))])
            .env("PATH", format!("{}:{path}", program.display()))
            .env("QUORATE_ENDPOINT", format!("http://127.0.0.1:{}", self.port))
            .current_dir(folder)
            .output()
            .expect("bash is installed")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn curl(arguments: &[&str]) -> Output {
    Command::new("curl").arg("--silent").args(arguments).output().expect("curl is installed")
}

#[test]
fn the_tour_in_the_readme_works_as_printed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cluster = Cluster::start(folder.path());
    let tour = tour();
    let (commands, requests) = tour.split_last().expect("the tour has blocks");
    assert_eq!(requests.len(), STATUSES.len(), "the tour has other blocks than this test knows");
    for (block, expected) in requests.iter().zip(STATUSES) {
        let output = cluster.run(block, folder.path());
        let text = String::from_utf8_lossy(&output.stdout);
        let statuses: Vec<u16> =
            text.lines().filter_map(|line| line.strip_prefix("status ")).filter_map(|code| code.parse().ok()).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(statuses, expected, "{block}\nanswered\n{text}\n{errors}");
    }
    let output = cluster.run(commands, folder.path());
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{commands}\nended with {}:\n{text}\n{errors}", output.status);
}
