//! `GET /v1/kv`: listings, in pages or as a stream of lines.
//!
//! Guarantees: every page of one cursor, and every line of one stream, is read at the same revision; at most one page
//! is held in memory for a request, and a slow client stops the reading instead of filling a buffer; the disk is read
//! on threads that may block, a bounded number at a time. Leaves out: single keys (`kv`).

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use http::header::{self, HeaderValue};

use super::admission::Pass;
use super::call::{Call, json_bytes};
use super::cursor::Cursor;
use super::freshness::Freshness;
use super::kv::selector_of;
use super::model::{Invalid, Listing, Problem, Record};
use super::problem::{EdgeError, Failure};
use super::query::Query;
use super::routes::Api;
use crate::clock::Instant;
use crate::node::{Consistency, ReadError};
use crate::state::{Page, RangeRead, StateView};
use crate::storage::Order;
use crate::types::limits::{PAGE_BYTES_MAX, PAGE_RECORDS_DEFAULT, PAGE_RECORDS_MAX};
use crate::types::{KeyRange, Revision, Selector};

const PARAMETERS: &[&str] = &[
    "prefix",
    "start",
    "end",
    "limit",
    "cursor",
    "keys_only",
    "count_only",
    "order",
    "consistency",
    "max_staleness",
    "min_revision",
    "revision",
];

const NDJSON_TYPE: &str = "application/x-ndjson";

/// The most records in one chunk of a stream.
const CHUNK_RECORDS_MAX: usize = 1_000;

/// A chunk of a stream ends once it holds this many bytes of keys and values.
const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// What a listing asks for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    range: KeyRange,
    order: Order,
    limit: usize,
    keys_only: bool,
    count_only: bool,
    cursor: Option<Cursor>,
    freshness: Freshness,
}

impl Plan {
    fn parse(query: &Query<'_>, local_only: bool) -> Result<Self, Invalid> {
        let freshness = Freshness::parse(query, local_only)?;
        let order = match query.bytes("order") {
            None => None,
            Some(b"asc") => Some(Order::Ascending),
            Some(b"desc") => Some(Order::Descending),
            Some(_) => return Err(Invalid::request("the query parameter \"order\" must be asc or desc")),
        };
        let limit = query.number("limit")?.unwrap_or(PAGE_RECORDS_DEFAULT as u64);
        let allowed = 1..=PAGE_RECORDS_MAX as u64;
        if !allowed.contains(&limit) {
            let detail = format!("the query parameter \"limit\" is {limit}; 1 to {PAGE_RECORDS_MAX} are allowed");
            return Err(Invalid::request(detail));
        }
        let range = match selector_of(query, false)?.map(super::model::Selector::into_state).transpose()? {
            Some(Selector::Range(range)) => Some(range),
            Some(Selector::Key(key)) => Some(KeyRange::single(&key)),
            None => None,
        };
        let keys_only = query.flag("keys_only")?;
        let count_only = query.flag("count_only")?.unwrap_or(false);
        let plan = Self {
            range: range.clone().unwrap_or_else(KeyRange::all),
            order: order.unwrap_or(Order::Ascending),
            limit: limit as usize,
            keys_only: keys_only.unwrap_or(false),
            count_only,
            cursor: None,
            freshness,
        };
        match query.text("cursor")? {
            None => Ok(plan),
            Some(text) => plan.resume(Cursor::decode(text)?, range, order, keys_only),
        }
    }

    /// Takes everything from the cursor; what was said beside it must say the same.
    fn resume(
        self,
        cursor: Cursor,
        range: Option<KeyRange>,
        order: Option<Order>,
        keys_only: Option<bool>,
    ) -> Result<Self, Invalid> {
        let contradicts = |name: &str| {
            Invalid::request(format!("{name} is not what the cursor was made with; leave it out or begin anew"))
        };
        if range.is_some_and(|range| range != cursor.range) {
            return Err(contradicts("the range (prefix, start, end)"));
        }
        if order.is_some_and(|order| order != cursor.order()) {
            return Err(contradicts("order"));
        }
        if keys_only.is_some_and(|keys_only| keys_only != cursor.keys_only) {
            return Err(contradicts("keys_only"));
        }
        if self.freshness.at_revision.is_some_and(|revision| revision != cursor.revision) {
            return Err(contradicts("revision"));
        }
        if self.count_only {
            return Err(Invalid::request("count_only and cursor exclude each other: every page tells the whole count"));
        }
        Ok(Self {
            range: cursor.range.clone(),
            order: cursor.order(),
            keys_only: cursor.keys_only,
            cursor: Some(cursor),
            ..self
        })
    }

    /// How the view for this page is had. The first page settles the revision; what stood at a revision is the same
    /// everywhere, so a later page needs no barrier, only a node that has come as far.
    fn page_freshness(&self) -> Freshness {
        let Some(cursor) = &self.cursor else { return self.freshness };
        Freshness {
            consistency: Consistency::Stale,
            min_revision: self.freshness.min_revision.max(Some(cursor.revision)),
            at_revision: Some(cursor.revision),
            local_only: self.freshness.local_only,
        }
    }
}

/// List keys
///
/// A page of a range, or with `Accept: application/x-ndjson` all of it, one record a line; a stream that ends without
/// an error of the connection is complete. Without a range: every key. `count` is that of the whole range.
#[utoipa::path(get, path = "/v1/kv", tag = "keys", params(
    ("prefix" = Option<String>, Query, description = "every key with this prefix"),
    ("start" = Option<String>, Query, description = "the inclusive lower bound"),
    ("end" = Option<String>, Query, description = "the exclusive upper bound; empty for none"),
    ("limit" = Option<u64>, Query,
        description = "the most records of a page, 1 to 10,000; 1,000 by default. A large page may end earlier"),
    ("cursor" = Option<String>, Query,
        description = "next_cursor of the page before; keeps range, order, keys_only and revision"),
    ("keys_only" = Option<bool>, Query, description = "leave the values out"),
    ("count_only" = Option<bool>, Query, description = "only count"),
    ("order" = Option<String>, Query, description = "asc (default) or desc"),
    ("consistency" = Option<String>, Query, description = "linearizable (default), bounded or stale"),
    ("max_staleness" = Option<String>, Query, description = "with consistency=bounded: a duration such as 2s"),
    ("min_revision" = Option<u64>, Query, description = "wait until this revision is applied"),
    ("revision" = Option<u64>, Query, description = "read the store as it was at this revision"),
    ("Prefer" = Option<String>, Header, description = "local: answer 503 rather than ask the leader"),
    ("Quorate-Timeout" = Option<String>, Header, description = "how long to wait, such as 5s; at most 60s"),
), responses(
    (status = 200,
        description = "a page, or all records one a line",
        content((Listing = "application/json"), (Record = "application/x-ndjson"))),
    (status = 400, description = "bad_request, invalid_range",
        body = Problem, content_type = "application/problem+json"),
    (status = 410, description = "revision_compacted", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "too_many_requests", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "no_leader, no_quorum, not_ready, stale_beyond_bound",
        body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list_keys(api: &Api, call: &mut Call) -> Result<Response, Failure> {
    let streamed = call.accepts(NDJSON_TYPE);
    let query = call.query(PARAMETERS, &[])?;
    let plan = Plan::parse(&query, call.prefers("local"))?;
    if streamed {
        for name in ["limit", "cursor", "count_only"] {
            if query.bytes(name).is_some() {
                let detail =
                    format!("the query parameter \"{name}\" is not allowed with {NDJSON_TYPE}: it streams all");
                return Err(Invalid::request(detail).into());
            }
        }
        let pass = api.admission().streams.enter(1)?;
        let view = api.read(call, plan.freshness).await?;
        return stream_response(api, plan, view, pass);
    }
    let deadline = call.deadline(api)?;
    let view = api.read(call, plan.page_freshness()).await?;
    let told = plan.freshness;
    let staleness = call.staleness.take().flatten();
    call.note_read(told, view.revision(), staleness);
    let body = scan(api, Some(deadline), move || page_body(&plan, &view)).await?;
    Ok(json_bytes(StatusCode::OK, api.admission().answer(body)?))
}

/// Runs a read of the disk where it may block, in its turn and within the deadline.
async fn scan<T: Send + 'static>(
    api: &Api,
    deadline: Option<Instant>,
    read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let turn = async {
        let permit = api.admission().scan().await?;
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read()
        });
        reading.await.map_err(|error| EdgeError::Internal(error.to_string()))?
    };
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, turn).await.map_err(|_| EdgeError::DeadlinePassed)?,
        None => turn.await,
    }
}

/// Reads and writes out one page.
fn page_body(plan: &Plan, view: &StateView) -> Result<Vec<u8>, Failure> {
    let revision = view.revision();
    let listing = if plan.count_only {
        let count = view.count(&plan.range).map_err(ReadError::from)?;
        Listing { revision: revision.get(), count, items: Vec::new(), next_cursor: None }
    } else {
        let rest = plan.cursor.as_ref().map_or_else(|| Some(plan.range.clone()), Cursor::rest);
        let page = match rest {
            Some(range) => view.range(&plan.range_read(range, plan.limit, PAGE_BYTES_MAX)).map_err(ReadError::from)?,
            None => Page { records: Vec::new(), more: false },
        };
        let count = match &plan.cursor {
            Some(cursor) => cursor.count,
            None if page.more => view.count(&plan.range).map_err(ReadError::from)?,
            None => page.records.len() as u64,
        };
        plan.listing(page, revision, count)
    };
    serde_json::to_vec(&listing).map_err(|error| EdgeError::Internal(error.to_string()).into())
}

impl Plan {
    fn range_read(&self, range: KeyRange, limit: usize, bytes_max: usize) -> RangeRead {
        RangeRead { range, order: self.order, limit, bytes_max, keys_only: self.keys_only }
    }

    fn listing(&self, page: Page, revision: Revision, count: u64) -> Listing {
        let last = page.records.last().filter(|_| page.more).map(|record| record.key.clone());
        let next_cursor = last.map(|last| self.cursor_behind(last, revision, count).encode());
        let items = page.records.into_iter().map(|record| Record::from_state(record, self.keys_only)).collect();
        Listing { revision: revision.get(), count, items, next_cursor }
    }

    fn cursor_behind(&self, last: crate::types::Key, revision: Revision, count: u64) -> Cursor {
        Cursor {
            range: self.range.clone(),
            descending: self.order == Order::Descending,
            keys_only: self.keys_only,
            revision,
            count,
            last,
        }
    }
}

/// Where a stream stands.
struct Streaming {
    api: Api,
    plan: Plan,
    view: StateView,
    /// What is still to be read; `None` at the end.
    rest: Option<KeyRange>,
    /// The stream's place among the streamed answers.
    _pass: Pass,
}

/// Streams a whole range. Nothing is read before the client has taken what was read before.
fn stream_response(api: &Api, plan: Plan, view: StateView, pass: Pass) -> Result<Response, Failure> {
    let rest = Some(plan.range.clone());
    let start = Streaming { api: api.clone(), plan, view, rest, _pass: pass };
    let chunks = stream::try_unfold(start, |mut streaming| async move {
        let Some(range) = streaming.rest.take() else { return Ok(None) };
        let read = streaming.plan.range_read(range, CHUNK_RECORDS_MAX, CHUNK_BYTES_MAX);
        let (view, keys_only) = (streaming.view.clone(), streaming.plan.keys_only);
        let read = scan(&streaming.api, None, move || chunk(&view, &read, keys_only)).await;
        // A stream that fails half-way can't tell so in its status; breaking the connection off does.
        let (lines, last) = read.map_err(|failure| std::io::Error::other(failure.to_string()))?;
        streaming.rest = last.and_then(|last| {
            let revision = streaming.view.revision();
            streaming.plan.cursor_behind(last, revision, 0).rest()
        });
        Ok::<_, std::io::Error>(Some((lines, streaming)))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON_TYPE));
    Ok(response)
}

/// One chunk of lines, and the last key in it if there are more behind.
fn chunk(view: &StateView, read: &RangeRead, keys_only: bool) -> Result<(Bytes, Option<crate::types::Key>), Failure> {
    let page = view.range(read).map_err(ReadError::from)?;
    let last = page.records.last().filter(|_| page.more).map(|record| record.key.clone());
    let mut lines = Vec::new();
    for record in page.records {
        serde_json::to_writer(&mut lines, &Record::from_state(record, keys_only))
            .map_err(|error| EdgeError::Internal(error.to_string()))?;
        lines.push(b'\n');
    }
    Ok((Bytes::from(lines), last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;
    use crate::types::Key;

    fn plan(raw: &str) -> Result<Plan, String> {
        let query = Query::parse(Some(raw), PARAMETERS, &[]).map_err(|invalid| invalid.detail)?;
        Plan::parse(&query, false).map_err(|invalid| invalid.detail)
    }

    fn page(keys: &[&'static str], more: bool) -> Page {
        let record = |key: &&'static str| state::Record {
            key: Key::new(*key).unwrap(),
            value: Bytes::new(),
            meta: state::RecordMeta::default(),
        };
        Page { records: keys.iter().map(record).collect(), more }
    }

    #[test]
    fn a_listing_without_parameters_is_the_first_page_of_everything() {
        let plan = plan("").unwrap();
        assert_eq!(
            (plan.range, plan.limit, plan.keys_only, plan.order),
            (KeyRange::all(), 1_000, false, Order::Ascending)
        );
    }

    #[test]
    fn the_next_page_is_read_at_the_revision_of_the_first() {
        let first = plan("prefix=a&order=desc&keys_only&limit=2").unwrap();
        let listing = first.listing(page(&["ac", "ab"], true), Revision::new(9), 5);
        assert_eq!((listing.revision, listing.count, listing.items.len()), (9, 5, 2));
        let cursor = listing.next_cursor.unwrap();
        let next = plan(&format!("cursor={cursor}&limit=2")).unwrap();
        assert_eq!((&next.range, next.order, next.keys_only), (&first.range, Order::Descending, true));
        let freshness = next.page_freshness();
        assert_eq!((freshness.at_revision, freshness.min_revision), (Some(Revision::new(9)), Some(Revision::new(9))));
        let last = next.listing(page(&["aa"], false), Revision::new(9), 5);
        assert_eq!(last.next_cursor, None);
    }

    #[test]
    fn parameters_that_contradict_the_cursor_are_refused() {
        let first = plan("prefix=a&keys_only").unwrap();
        let cursor = first.listing(page(&["aa"], true), Revision::new(9), 5).next_cursor.unwrap();
        for same in ["prefix=a", "keys_only=true", "order=asc", "revision=9", "consistency=stale"] {
            assert!(plan(&format!("cursor={cursor}&{same}")).is_ok(), "{same}");
        }
        for other in ["prefix=b", "start=a", "keys_only=false", "order=desc", "revision=8", "count_only"] {
            assert!(plan(&format!("cursor={cursor}&{other}")).is_err(), "{other}");
        }
    }

    #[test]
    fn malformed_listings_are_refused() {
        let cases = [
            "limit=0",
            "limit=10001",
            "limit=x",
            "order=up",
            "cursor=",
            "cursor=AAAA",
            "cursor=%ff",
            "start=b&end=a",
            "start=a&end=a",
            "prefix=a&end=b",
            "keys_only=maybe",
            "key=a",
            "limit=1&limit=1",
        ];
        for raw in cases {
            assert!(plan(raw).is_err(), "{raw}");
        }
    }
}
