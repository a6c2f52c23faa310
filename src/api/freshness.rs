//! How fresh a read must be: the parameters every read takes.
//!
//! Guarantees: what contradicts itself is refused. Leaves out: how freshness is had (`node::read`).

use std::time::Duration;

use super::model::Invalid;
use super::query::{Query, shown};
use crate::clock::Instant;
use crate::node::{Consistency, ReadOptions};
use crate::types::Revision;

/// The loosest bound a read may name.
const STALENESS_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What a read asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Freshness {
    pub(super) consistency: Consistency,
    pub(super) min_revision: Option<Revision>,
    pub(super) at_revision: Option<Revision>,
    pub(super) local_only: bool,
}

impl Freshness {
    /// The names it reads.
    pub(super) const PARAMETERS: [&'static str; 4] = ["consistency", "max_staleness", "min_revision", "revision"];

    pub(super) fn parse(query: &Query<'_>, local_only: bool) -> Result<Self, Invalid> {
        let bound = query.duration("max_staleness", STALENESS_MAX)?;
        let consistency = match (query.bytes("consistency"), bound) {
            (None | Some(b"linearizable"), None) => Consistency::Linearizable,
            (Some(b"stale"), None) => Consistency::Stale,
            (Some(b"bounded"), Some(max_staleness)) => Consistency::Bounded { max_staleness },
            (Some(b"bounded"), None) => {
                return Err(Invalid::request("consistency=bounded needs max_staleness, such as max_staleness=2s"));
            }
            (None | Some(b"linearizable" | b"stale"), Some(_)) => {
                return Err(Invalid::request("max_staleness is allowed only with consistency=bounded"));
            }
            (Some(other), _) => {
                return Err(Invalid::request(format!(
                    "the query parameter \"consistency\" is \"{}\"; it must be linearizable, bounded or stale",
                    shown(other)
                )));
            }
        };
        let min_revision = query.revision("min_revision", 0)?;
        let at_revision = query.revision("revision", 1)?;
        Ok(Self { consistency, min_revision, at_revision, local_only })
    }

    pub(super) fn options(self, deadline: Instant) -> ReadOptions {
        ReadOptions {
            consistency: self.consistency,
            min_revision: self.min_revision,
            at_revision: self.at_revision,
            local_only: self.local_only,
            deadline,
        }
    }

    /// Whether the answer must tell how old it may be.
    pub(super) fn tells_staleness(self) -> bool {
        self.consistency != Consistency::Linearizable
    }

    /// The name on the wire.
    pub(super) fn name(self) -> &'static str {
        match self.consistency {
            Consistency::Linearizable => "linearizable",
            Consistency::Bounded { .. } => "bounded",
            Consistency::Stale => "stale",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<Freshness, String> {
        let query = Query::parse(Some(raw), &Freshness::PARAMETERS, &[]).unwrap();
        Freshness::parse(&query, false).map_err(|invalid| invalid.detail)
    }

    #[test]
    fn reads_are_linearizable_unless_less_is_asked_for() {
        assert_eq!(parse(""), Ok(Freshness::default()));
        assert_eq!(parse("consistency=linearizable"), Ok(Freshness::default()));
        assert_eq!(parse("consistency=stale").unwrap().consistency, Consistency::Stale);
        let max_staleness = Duration::from_secs(2);
        assert_eq!(
            parse("consistency=bounded&max_staleness=2s").unwrap().consistency,
            Consistency::Bounded { max_staleness }
        );
        let both = parse("min_revision=4&revision=3").unwrap();
        assert_eq!((both.min_revision, both.at_revision), (Some(Revision::new(4)), Some(Revision::new(3))));
    }

    #[test]
    fn contradictions_are_refused() {
        let cases = [
            ("consistency=bounded", "needs max_staleness"),
            ("max_staleness=2s", "only with consistency=bounded"),
            ("consistency=stale&max_staleness=2s", "only with consistency=bounded"),
            ("consistency=strong", "linearizable, bounded or stale"),
            ("consistency=", "linearizable, bounded or stale"),
            ("revision=0", "at least 1"),
            ("revision=latest", "whole number"),
            ("min_revision=-1", "whole number"),
        ];
        for (raw, reason) in cases {
            let error = parse(raw).unwrap_err();
            assert!(error.contains(reason), "{raw}: {error}");
        }
    }
}
