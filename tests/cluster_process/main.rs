//! Real processes: the binary as it is shipped, three nodes on loopback, five at times, killed, stopped, cut off and damaged.
//!
//! Each test starts processes of its own, on ports and in directories of its own, and judges by what clients were told:
//! what was acknowledged is there on every node, what was refused is not, all nodes agree by the hash of their state, and where
//! clients noted down all they saw, it is what a single copy would have answered.
//! Leaves out: one process with several nodes (`node_cluster`) and the HTTP contract (`http_contract`).

mod archive;
mod catch_up;
mod crashes;
mod cuts;
mod disk;
mod disk_failures;
mod durability;
mod far;
mod forming;
mod hand_over;
mod links;
mod load;
mod local_reads;
mod membership;
mod partitions;
mod process;
mod rebuilding;
mod recorder;
mod refounding;
mod refusals;
mod registers;
mod restore;
mod restore_steps;
mod runbook;
mod snapshot_order;
mod targets;
mod trace;
mod zones;
