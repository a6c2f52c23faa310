//! The client and the command line against a server that does whatever a test wants.

mod command_line;
mod fake;
mod retries;
mod snapshots;
