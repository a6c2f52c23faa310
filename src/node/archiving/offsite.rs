//! Writes that are answered only once they are off-site.
//!
//! Guarantees: an answer without an error means that enough archives have the write; where that was not so in time, the
//! caller hears that the write was done all the same. A write that could never be off-site is refused before it is done.
//! Leaves out: how to ask for it (`api`).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Archiving, GONE_AFTER, Heard};
use crate::clock::Instant;
use crate::node::Node;
use crate::node::request::WriteError;
use crate::state::{OpReply, Txn, TxnOp, TxnReply};
use crate::types::{NodeId, Revision, Selector};

/// Which writes wait until they are off-site, and what that means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsiteRule {
    /// So many archives must have a write.
    pub min_copies: usize,
    /// Writes to keys with one of these prefixes always wait.
    pub prefixes: Vec<Bytes>,
}

impl Default for OffsiteRule {
    fn default() -> Self {
        Self { min_copies: 1, prefixes: Vec::new() }
    }
}

impl OffsiteRule {
    /// Whether a transaction may write a key that the rule is about.
    pub(super) fn covers(&self, txn: &Txn) -> bool {
        let touches = |op: &TxnOp| match op {
            TxnOp::Put { key, .. } | TxnOp::Delete { selector: Selector::Key(key) } => {
                self.prefixes.iter().any(|prefix| key.as_bytes().starts_with(prefix))
            }
            // The keys of a prefix lie between it and the first that is greater and does not begin with it.
            TxnOp::Delete { selector: Selector::Range(range) } => self.prefixes.iter().any(|prefix| {
                let ends_before = range.end().is_some_and(|end| end <= prefix);
                let begins_behind = &range.start()[..] > prefix && !range.start().starts_with(prefix);
                !ends_before && !begins_behind
            }),
            TxnOp::Get { .. } => false,
        };
        !self.prefixes.is_empty() && txn.success.iter().chain(&txn.failure).any(touches)
    }
}

impl Archiving {
    /// How many places that count are known, by who is there: what a node that is gone had in its configuration is no promise.
    /// Those that are in the configuration here are known before they were heard of.
    fn durable_places(&self) -> usize {
        self.copies_of(None)
    }

    /// How many archives have this revision.
    fn copies(&self, revision: Revision) -> usize {
        self.copies_of(Some(revision))
    }

    fn copies_of(&self, revision: Option<Revision>) -> usize {
        // By store alone: two names for one are one copy.
        let mut places: BTreeMap<u64, Option<Revision>> = BTreeMap::new();
        let list = self.list();
        let own = list.iter().filter(|place| place.settings.durable).map(|place| {
            let archived = place.desk.status().borrow().archived.map(|archived| archived.revision);
            (place.url_hash, archived)
        });
        let heard = self.0.heard.lock();
        let others = told(&heard, revision);
        for (place, archived) in own.chain(others) {
            let known = places.entry(place).or_default();
            *known = (*known).max(archived);
        }
        places.values().filter(|archived| revision.is_none() || **archived >= revision).count()
    }

    /// Returns once enough archives have this revision.
    async fn offsite(&self, revision: Revision, deadline: Instant) -> Result<(), WriteError> {
        let mut changed = self.0.changed.subscribe();
        let wanted = self.0.offsite.min_copies;
        {
            let mut newest = self.0.wanted.lock();
            *newest = (*newest).max(revision);
        }
        let mut asked = false;
        loop {
            changed.borrow_and_update();
            let copies = self.copies(revision);
            if copies >= wanted {
                return Ok(());
            }
            if !std::mem::replace(&mut asked, true) {
                self.nudge(revision);
                self.0.telling.notify_one();
            }
            if !matches!(tokio::time::timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
                return Err(WriteError::NotOffsite { revision, copies, wanted });
            }
        }
    }
}

/// How far others have archived to places that count, by what they said last: to let a write through, who is gone counts for
/// nothing; but what was archived stays so, whoever told it.
fn told(heard: &BTreeMap<NodeId, Heard>, revision: Option<Revision>) -> impl Iterator<Item = (u64, Option<Revision>)> {
    let counts = move |heard: &&Heard| revision.is_some() || heard.at.elapsed() < GONE_AFTER;
    let places = heard.values().filter(counts).flat_map(|heard| &heard.news.places);
    let durable = places.filter(|place| place.durable);
    durable.map(|place| (place.url_hash, place.archived.map(|archived| archived.revision)))
}

impl Node {
    /// Whether a transaction must be off-site before it is answered, by the rules of this node.
    #[must_use]
    pub fn must_be_offsite(&self, txn: &Txn) -> bool {
        self.0.archiving.get().is_some_and(|archiving| archiving.0.offsite.covers(txn))
    }

    /// Refuses what could not be off-site in any case: call it before the write is done.
    ///
    /// # Errors
    /// [`WriteError::NotReady`], or [`WriteError::NoOffsite`] where too few places for backups are known.
    pub fn can_be_offsite(&self) -> Result<(), WriteError> {
        let archiving = self.archiving().map_err(WriteError::NotReady)?;
        let (known, wanted) = (archiving.durable_places(), archiving.0.offsite.min_copies);
        if known < wanted { Err(WriteError::NoOffsite { known, wanted }) } else { Ok(()) }
    }

    /// Returns once enough archives have what a transaction wrote, no later than at `deadline`.
    ///
    /// # Errors
    /// [`WriteError::NotOffsite`]: it was done, but is not off-site yet.
    pub async fn await_offsite(&self, reply: &TxnReply, deadline: Instant) -> Result<(), WriteError> {
        let wrote = |reply: &OpReply| match reply {
            OpReply::Put { .. } => true,
            OpReply::Delete { deleted } => *deleted > 0,
            OpReply::Get { .. } => false,
        };
        if !reply.responses.iter().any(wrote) {
            return Ok(());
        }
        let archiving = self.archiving().map_err(WriteError::OutcomeUnknown)?;
        archiving.offsite(reply.revision, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::news::{Archived, News, PlaceNews};
    use super::*;
    use crate::clock;
    use crate::types::{Key, KeyRange, LeaseId, LogIndex, LogPosition, Term};

    fn range(start: &'static [u8], end: Option<&'static [u8]>) -> TxnOp {
        let range = KeyRange::new(start, end.map(Bytes::from_static)).unwrap();
        TxnOp::Delete { selector: Selector::Range(range) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_only_a_node_that_is_gone_has_lets_no_write_through() {
        let position = LogPosition { term: Term::new(1), leader: NodeId::new(1), index: LogIndex::new(8) };
        let archived = Some(Archived { position, revision: Revision::new(5) });
        let places = vec![PlaceNews { durable: true, url_hash: 7, archived, ..PlaceNews::default() }];
        let news = News { places, ..News::default() };
        let heard = BTreeMap::from([(NodeId::new(2), Heard { at: clock::now(), news })]);
        let (known, reached) = ((7, Some(Revision::new(5))), Some(Revision::new(5)));
        assert_eq!(told(&heard, None).collect::<Vec<_>>(), [known]);
        tokio::time::sleep(GONE_AFTER).await;
        assert_eq!(told(&heard, None).count(), 0);
        assert_eq!(told(&heard, reached).collect::<Vec<_>>(), [known], "what is archived stays so");
    }

    #[test]
    fn a_rule_covers_whatever_may_write_below_its_prefixes() {
        let rule = OffsiteRule { min_copies: 1, prefixes: vec![Bytes::from_static(b"money/")] };
        let covers = |op: TxnOp| rule.covers(&Txn { failure: vec![op], ..Txn::default() });
        let put = |key: &str| TxnOp::Put {
            key: Key::new(key.to_owned()).unwrap(),
            value: Bytes::new(),
            lease: LeaseId::ZERO,
        };
        assert!(covers(put("money/1")) && !covers(put("money")) && !covers(put("n")));
        assert!(!covers(TxnOp::Get { selector: Selector::Range(KeyRange::all()), limit: 1, keys_only: false }));
        assert!(
            covers(range(b"a", None))
                && covers(range(b"money/5", Some(b"money/6")))
                && covers(range(b"m", Some(b"money/0")))
        );
        assert!(!covers(range(b"a", Some(b"money/"))) && !covers(range(b"money0", None)) && !covers(range(b"n", None)));
        assert!(!OffsiteRule::default().covers(&Txn { success: vec![put("money/1")], ..Txn::default() }));
    }
}
