//! A store that does one thing at a time, for histories that are right by the way they are made.
//!
//! Written apart from the judge, straight from what the operations mean. It remembers all it ever held, for reads of the past.

use std::collections::BTreeMap;

use super::super::super::*;

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) revision: u64,
    /// By key: what became of it, at which revision.
    changes: BTreeMap<String, Vec<(u64, Option<Record>)>>,
}

impl Store {
    /// What was there at a revision.
    pub(super) fn found(&self, key: &str, revision: u64) -> Option<&Record> {
        let changes = self.changes.get(key)?;
        let count = changes.partition_point(|(at, _)| *at <= revision);
        changes[..count].last()?.1.as_ref()
    }

    fn current(&self, key: &str) -> Option<&Record> {
        self.changes.get(key)?.last()?.1.as_ref()
    }

    /// The mod revision of a key.
    pub(super) fn at(&self, key: &str) -> Option<u64> {
        self.current(key)?.mod_revision
    }

    fn change(&mut self, key: &str, revision: u64, record: Option<Record>) {
        self.changes.entry(key.to_owned()).or_default().push((revision, record));
    }

    fn put(&mut self, key: &str, value: &str, revision: u64) -> Record {
        let before = self.current(key);
        let record = Record {
            value: value.to_owned(),
            mod_revision: Some(revision),
            create_revision: before.map_or(Some(revision), |before| before.create_revision),
            version: Some(before.map_or(1, |before| before.version.unwrap() + 1)),
        };
        self.change(key, revision, Some(record.clone()));
        record
    }

    fn delete(&mut self, key: &str, revision: u64) -> bool {
        let deleted = self.current(key).is_some();
        if deleted {
            self.change(key, revision, None);
        }
        deleted
    }

    /// Does something, now.
    pub(super) fn apply(&mut self, action: &Action) -> Answer {
        let next = self.revision + 1;
        let unmet = |at: Option<u64>, wanted: Option<u64>| wanted.is_some_and(|wanted| Some(wanted) != at);
        match action {
            Action::Put(Put { key, value, if_revision, if_absent }) => {
                let at = self.at(key);
                if *if_absent && at.is_some() || unmet(at, *if_revision) {
                    return Answer::Failed(FailedAnswer { revision: Some(self.revision), mod_revision: at });
                }
                let Record { create_revision, version, .. } = self.put(key, value, next);
                self.revision = next;
                Answer::Put(PutAnswer { revision: Some(next), create_revision, version })
            }
            Action::Delete(Delete { key, if_revision }) => {
                let at = self.at(key);
                if unmet(at, *if_revision) {
                    return Answer::Failed(FailedAnswer { revision: Some(self.revision), mod_revision: at });
                }
                let deleted = self.delete(key, next);
                self.revision += u64::from(deleted);
                Answer::Delete(DeleteAnswer { revision: Some(self.revision), deleted })
            }
            Action::Txn(txn) => self.txn(txn),
            Action::Get(_) | Action::List(_) => self.read(action, self.revision, None),
        }
    }

    /// What a read finds at a revision; a page has what is behind `after`.
    pub(super) fn read(&self, action: &Action, revision: u64, after: Option<&str>) -> Answer {
        match action {
            Action::Get(get) => {
                let record = self.found(&get.key, revision).cloned();
                Answer::Get(GetAnswer { revision: Some(revision), staleness_ms: None, record })
            }
            Action::List(list) => {
                let listed = |key: &String| {
                    let Record { value, mod_revision, create_revision, version } = self.found(key, revision)?.clone();
                    let [mod_revision, create_revision, version] =
                        [mod_revision, create_revision, version].map(Option::unwrap);
                    Some(Listed { key: key.clone(), value, mod_revision, create_revision, version })
                };
                let all: Vec<Listed> =
                    self.changes.keys().filter(|key| key.starts_with(&list.prefix)).filter_map(listed).collect();
                let count = all.len() as u64;
                let mut rest = all.into_iter().filter(|listed| after.is_none_or(|after| listed.key.as_str() > after));
                let records = rest.by_ref().take(list.limit as usize).collect();
                let more = rest.next().is_some();
                Answer::List(ListAnswer { revision, staleness_ms: None, count, records, more })
            }
            other => panic!("reads nothing: {other:?}"),
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let record = self.current(&compare.key);
        let number = |property: fn(&Record) -> Option<u64>| record.map_or(0, |record| property(record).unwrap());
        let ordering = match (&compare.value, compare.target) {
            (Operand::Text(operand), _) => match record {
                Some(record) => record.value.cmp(operand),
                None => return false,
            },
            (Operand::Number(operand), Target::ModRevision) => number(|record| record.mod_revision).cmp(operand),
            (Operand::Number(operand), Target::CreateRevision) => number(|record| record.create_revision).cmp(operand),
            (Operand::Number(operand), _) => number(|record| record.version).cmp(operand),
        };
        compare.op.holds(ordering)
    }

    fn txn(&mut self, txn: &Txn) -> Answer {
        let next = self.revision + 1;
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let (mut responses, mut changed) = (Vec::new(), false);
        for op in branch {
            responses.push(match op {
                TxnOp::Put { key, value } => {
                    changed = true;
                    let Record { create_revision, version, .. } = self.put(key, value, next);
                    TxnResponse::Put { create_revision, version }
                }
                TxnOp::Get { key } => TxnResponse::Get { record: self.current(key).cloned() },
                TxnOp::Delete { key } => {
                    let deleted = self.delete(key, next);
                    changed |= deleted;
                    TxnResponse::Delete { deleted }
                }
            });
        }
        self.revision += u64::from(changed);
        Answer::Txn(TxnAnswer { revision: Some(self.revision), succeeded, responses })
    }
}
