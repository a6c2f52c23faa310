//! A log that can no longer be written ends the process: an acknowledgement it could not keep would be worse.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::time::{Instant, sleep};

use crate::crashes::WRITERS;
use crate::load::Load;
use crate::process::{Cluster, Member, PATIENCE, POLL, Settings, http};

/// Makes the syncs of a log fail while a file exists. Preloaded into the process.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd) {
    char link[64], path[4096];
    const char *when = getenv("SYNC_FAILS_WHILE");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || when == NULL || access(when, F_OK) != 0) return 0;
    path[length] = 0;
    return strstr(path, "/log/") != NULL;
}

#define SYNC(name) \
    int name(int fd) { \
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        if (fails(fd)) { errno = EIO; return -1; } \
        return real(fd); \
    }
SYNC(fdatasync)
SYNC(fsync)
"#;

fn shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    fs::write(&source, SHIM).unwrap();
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").output();
    let compiler = compiler.expect("a C compiler, which the README asks for");
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    library
}

/// The process must have ended for its disk's sake.
async fn ended_by_its_disk(node: &mut Member) {
    let status = node.ended().await;
    let said = node.said();
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(last.starts_with("quorate: ending after a local failure: "), "{last}");
    assert!(last.contains("log"), "{last}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_the_log_ends_the_process() {
    let mut cluster = Cluster::prepare(&Settings::default()).await;
    let library = shim(cluster.dir.path());
    let trigger = |name: &str| library.with_file_name(format!("{name}-fails"));
    for node in &mut cluster.nodes {
        let show = |path: &Path| path.to_string_lossy().into_owned();
        node.settings.env.push(("LD_PRELOAD".into(), show(&library)));
        node.settings.env.push(("SYNC_FAILS_WHILE".into(), show(&trigger(&node.name))));
    }
    cluster.start_all().await;
    let mut load = Load::start(&cluster.endpoints(), WRITERS);
    load.acknowledged(100).await;
    for at in [cluster.follower().await, cluster.leader().await] {
        let trigger = trigger(&cluster.nodes[at].name);
        fs::write(&trigger, "").unwrap();
        ended_by_its_disk(&mut cluster.nodes[at]).await;
        // The others go on.
        load.acknowledged(100).await;
        fs::remove_file(&trigger).unwrap();
        cluster.nodes[at].start();
        cluster.nodes[at].ready().await;
    }
    load.acknowledged(100).await;
    // All of them: what they acknowledged before is there afterwards, and nothing was acknowledged in between.
    for node in &cluster.nodes {
        fs::write(trigger(&node.name), "").unwrap();
    }
    // The last one has no quorum, so nothing to write either; it would wait for ever.
    let deadline = Instant::now() + PATIENCE;
    while cluster.nodes.iter_mut().map(Member::is_running).filter(|running| *running).count() > 1 {
        assert!(Instant::now() < deadline, "two nodes of three go on without a disk");
        sleep(POLL).await;
    }
    for node in &mut cluster.nodes {
        if node.is_running() {
            node.kill();
        } else {
            ended_by_its_disk(node).await;
        }
    }
    let told = load.stop().await;
    for node in &cluster.nodes {
        fs::remove_file(trigger(&node.name)).unwrap();
    }
    cluster.start_all().await;
    cluster.converged().await;
    told.check(&cluster).await;
}

/// A disk without room, as far as a process without rights can have one: no file may grow beyond a megabyte or two.
const FULL_DISK: &str = "trap '' XFSZ; ulimit -f 2048";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_of_the_log_ends_the_process() {
    let mut cluster = Cluster::start(&Settings::default()).await;
    let at = cluster.follower().await;
    cluster.nodes[at].kill();
    cluster.nodes[at].settings.prelude = Some(FULL_DISK.into());
    cluster.nodes[at].start();
    cluster.ready().await;
    let value = vec![b'x'; 64 * 1024];
    let client = http();
    let mut acknowledged = Vec::new();
    for number in 0..200 {
        if !cluster.nodes[at].is_running() {
            break;
        }
        let key = format!("big/{number}");
        let url = cluster.nodes[at].url(&format!("/v1/kv/{key}"));
        let answer = client.put(url).body(value.clone()).timeout(PATIENCE).send().await;
        if answer.is_ok_and(|answer| answer.status() == 201) {
            acknowledged.push(key);
        }
    }
    ended_by_its_disk(&mut cluster.nodes[at]).await;
    assert!(!acknowledged.is_empty());
    cluster.nodes[at].settings.prelude = None;
    cluster.nodes[at].start();
    cluster.ready().await;
    cluster.converged().await;
    for key in acknowledged {
        for node in &cluster.nodes {
            let answer = client.get(node.url(&format!("/v1/kv/{key}?consistency=stale"))).send().await.unwrap();
            assert_eq!(answer.bytes().await.unwrap(), value, "{}: {key}", node.name);
        }
    }
}
