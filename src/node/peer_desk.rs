//! Where calls of other members arrive: forming messages from the first moment on, Raft's once it runs.
//!
//! The first byte tells them apart: Raft's messages begin with their format version, which stays below 128, forming
//! messages with [`FORMING`], questions about the group with [`GROUP`], orders to hand over with [`TRANSFER`], to change
//! the members with [`MEMBERSHIP`], news of off-site copies with [`ARCHIVE`].
//!
//! Guarantees: a node can be asked who it is at any time; Raft messages that come too early are refused without an answer,
//! so that the sender tries again. Leaves out: what the messages mean (`raft`, `forming`,
//! `group`, `leader_transfer`, `membership`, `archiving`, `neighbours`).

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::archiving::{ARCHIVE, Archiving};
use super::forming::FormingDesk;
use super::group::{GROUP, GroupDesk};
use super::leader_transfer::TRANSFER;
use super::membership::{MEMBERSHIP, Membership};
use super::neighbours::{self, ECHO};
use crate::transport::{BoxFuture, Channel, PeerHandler};

/// The first byte of a forming message.
pub(super) const FORMING: u8 = 0xF0;

/// Who answers once Raft runs.
struct Running {
    raft: Arc<dyn PeerHandler>,
    group: GroupDesk,
    membership: Membership,
    archiving: Archiving,
}

/// Answers other members.
pub(super) struct PeerDesk {
    forming: Arc<FormingDesk>,
    raft: OnceLock<Running>,
}

impl PeerDesk {
    pub(super) fn new(forming: Arc<FormingDesk>) -> Self {
        Self { forming, raft: OnceLock::new() }
    }

    /// From now on Raft's messages, questions about the group and orders are answered, too.
    pub(super) fn open(
        &self,
        raft: Arc<dyn PeerHandler>,
        group: GroupDesk,
        membership: Membership,
        archiving: Archiving,
    ) {
        // Opened once, at the end of the start.
        let _ = self.raft.set(Running { raft, group, membership, archiving });
    }
}

impl PeerHandler for PeerDesk {
    fn handle(&self, channel: Channel, request: Bytes) -> BoxFuture<'_, Option<Bytes>> {
        match (request.first(), self.raft.get()) {
            (Some(&FORMING), _) => {
                // Adopting an identity writes and syncs a small file, once in the life of a node.
                let answer = self.forming.handle(&request);
                Box::pin(std::future::ready(answer))
            }
            (Some(&ECHO), _) => Box::pin(std::future::ready(neighbours::echo(&request))),
            (Some(&GROUP), Some(running)) => Box::pin(std::future::ready(running.group.handle(&request))),
            (Some(&TRANSFER), Some(running)) => {
                Box::pin(async move { running.membership.transfers.handle(&request).await })
            }
            (Some(&MEMBERSHIP), Some(running)) => Box::pin(async move { running.membership.handle(&request).await }),
            (Some(&ARCHIVE), Some(running)) => Box::pin(std::future::ready(running.archiving.handle(&request))),
            (Some(_), Some(running)) => running.raft.handle(channel, request),
            _ => Box::pin(std::future::ready(None)),
        }
    }
}
