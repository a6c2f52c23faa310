//! Processes that die, and disks that refuse: this test binary starts itself again, as the process that writes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use rand::Rng as _;

use super::*;

/// Names the directory for the child.
const CHILD_DIR: &str = "QUORATE_LOG_STORE_CHILD";

/// How often a process is killed.
const KILLS: usize = 6;

/// What the child has been promised.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Promised {
    entries: u64,
    term: u64,
}

/// Not a test of its own: the process that is killed. Says why it had to end, if it had to.
#[tokio::test]
async fn child_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let config = LogConfig { chunk_bytes: 20_000, ..LogConfig::default() };
    let mut store = LogStore::open(Path::new(&dir), config).unwrap();
    let error = write_and_promise(&mut store).await.unwrap_err();
    println!("\nfailed {error}\nfatal {}", store.fatal().borrow().clone().unwrap());
}

/// Writes entries and votes and says what is promised, until it fails. No bound: the parent kills the process.
async fn write_and_promise(store: &mut LogStore) -> io::Result<std::convert::Infallible> {
    let mut next = store.last().map_or(0, |last| last.index.get() + 1);
    let mut term = store.read_vote().await?.map_or(1, |vote| vote.leader_id.term.get());
    let mut out = std::io::stdout();
    loop {
        if next.is_multiple_of(7) {
            term += 1;
            store.save_vote(&vote(term)).await?;
            writeln!(out, "\npromised term {term}")?;
        }
        let mut flushed = Vec::new();
        for count in 1..=3 {
            let (tx, rx) = TypeConfig::oneshot();
            store.append((next..next + count).map(|index| entry(7, index)), IOFlushed::signal(tx)).await?;
            next += count;
            flushed.push((next, rx));
        }
        store.save_committed(Some(id(7, next - 3))).await?;
        for (entries, rx) in flushed {
            rx.await.unwrap()?;
            writeln!(out, "\npromised entries {entries}")?;
        }
    }
}

fn child(dir: &Path, wrapper: &str) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{wrapper} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "raft::log_store::tests::crash::child_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The child's words, until it has made `promises` promises or has ended.
fn listen(child: &mut Child, promises: usize) -> (Promised, Vec<String>) {
    let (mut promised, mut heard, mut others) = (Promised::default(), 0, Vec::new());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let number = |text: &str| text.parse().unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["promised", "entries", count] => promised.entries = number(count),
            ["promised", "term", term] => promised.term = number(term),
            _ => {
                others.push(line);
                continue;
            }
        }
        heard += 1;
        if heard == promises {
            child.kill().unwrap();
            // What was promised before the kill arrived counts too.
        }
    }
    child.wait().unwrap();
    (promised, others)
}

#[tokio::test]
async fn nothing_promised_is_lost_to_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = Promised::default();
    for round in 0..KILLS {
        let promises = rand::rng().random_range(1..400);
        let (promised, _) = listen(&mut child(dir.path(), ""), promises);
        let promised = Promised { entries: promised.entries.max(before.entries), term: promised.term.max(before.term) };
        let mut store = LogStore::open(dir.path(), LogConfig::default()).unwrap();
        let entries = all(&mut store).await;
        assert!(entries.len() as u64 >= promised.entries, "round {round}: {} of {promised:?}", entries.len());
        let expected = (0..entries.len() as u64).map(|index| entry(7, index));
        assert!(entries.iter().cloned().eq(expected), "round {round}: entries are not what was written");
        let term = store.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term.get());
        assert!(term >= promised.term, "round {round}: the vote went back from {promised:?} to term {term}");
        before = Promised { entries: entries.len() as u64, term };
    }
    assert!(before.entries > 0 && before.term > 1);
}

/// A file size limit stands for the disk that fails: the write is refused by the kernel in the writer's thread, which
/// reports a failed write and a failed fdatasync the same way. (A failing fdatasync alone needs a faulty device or a
/// preloaded library.)
#[tokio::test]
async fn a_failed_write_is_told_and_promises_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    // In blocks of 512 bytes: 8 KiB, below the size of a chunk.
    let (promised, others) = listen(&mut child(dir.path(), "trap '' XFSZ; ulimit -f 16;"), usize::MAX);
    assert!(promised.entries > 0);
    let said = |what: &str| others.iter().any(|line| line.starts_with(what));
    assert!(said("failed ") && said("fatal the Raft log can no longer be written"), "{others:?}");
    let mut store = LogStore::open(dir.path(), LogConfig::default()).unwrap();
    let entries = all(&mut store).await;
    assert!(entries.len() as u64 >= promised.entries);
    assert!(
        entries
            .into_iter()
            .eq((0..).map(|index| entry(7, index)).take(store.last().unwrap().index.next().get() as usize))
    );
}
