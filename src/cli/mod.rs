//! The command line: what can be typed, and what comes back.
//!
//! Guarantees: results go to standard output and nothing else does; an error is one line on standard error that begins
//! with `quorate:`; the exit code is that of `failure::Exit`; a reader that closes the pipe ends a command quietly.
//! Leaves out: the work itself; commands talk to [`crate::client`], [`crate::workload`] and the node.

mod alarms;
mod archive;
mod backup;
mod bench;
mod check_history;
mod cluster;
mod completions;
mod connect;
mod dev;
mod doctor;
mod facts;
mod failure;
mod interrupt;
mod kv;
mod leader;
mod member;
mod output;
mod recover;
mod restore;
mod restore_prefix;
mod run_server;
mod serve;
mod snapshot;
mod txn;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use connect::Global;
use failure::Failure;
use output::Output;

/// A strongly consistent key-value store: Raft, plain HTTP, disaster recovery built in
#[derive(Debug, Parser)]
#[command(name = "quorate", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 unavailable or outcome unknown, 4 damaged data\n\n\
                        Example:\n  quorate dev &\n  quorate put greeting hello\n  quorate get greeting"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Dev(dev::Dev),
    Put(kv::Put),
    Get(kv::Get),
    Del(kv::Del),
    List(kv::List),
    Txn(txn::TxnFile),
    Status(cluster::Status),
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Member(member::MemberCommand),
    #[command(subcommand)]
    Leader(leader::LeaderCommand),
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    Restore(Box<restore::Restore>),
    Alarms(alarms::Alarms),
    Recover(recover::Recover),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    Workload(workload::WorkloadCommand),
    CheckHistory(check_history::CheckHistory),
    Completions(completions::Completions),
}

/// Runs the command that the process was started with and gives its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage_of(&error, &Cli::command()),
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Dev(dev) => dev.run(),
        Command::Put(put) => client_command(async { put.run(global).await }),
        Command::Get(get) => client_command(async { get.run(global).await }),
        Command::Del(del) => client_command(async { del.run(global).await }),
        Command::List(list) => client_command(async { list.run(global).await }),
        Command::Txn(txn) => client_command(async { txn.run(global).await }),
        Command::Doctor(doctor) => client_command(async { doctor.run(global).await }),
        Command::Status(status) => client_command(async { status.run(global).await }),
        Command::Member(command) => client_command(async { command.run(global).await }),
        Command::Leader(command) => client_command(async { command.run(global).await }),
        Command::Snapshot(command) => client_command(async { command.run(global).await }),
        Command::Backup(command) => client_command(async { command.run(global).await }),
        Command::Restore(restore) => client_command(async { restore.run(global).await }),
        Command::Alarms(alarms) => client_command(async { alarms.run(global).await }),
        Command::Recover(recover) => client_command(async { recover.run(global).await }),
        Command::Bench(command) => command.run(global),
        Command::Workload(command) => client_command(async { command.run(global).await }),
        Command::CheckHistory(check) => check.run(global),
        Command::Completions(completions) => completions.run(Cli::command()),
    }
}

/// Runs a command that talks to a cluster: a single thread is plenty, and starts fastest.
fn client_command(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unavailable(format!("can't start the runtime: {error}")))?;
    let result = runtime.block_on(work);
    if result.is_err() {
        // A thread that still works for a command that was given up is not waited for: it ends with the process.
        runtime.shutdown_background();
    }
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
