//! The limits of the contract, each with its unit in its name. What a room limits for itself stands in that room.

/// The longest key, in bytes. The shortest is one byte.
pub const KEY_BYTES_MAX: usize = 4_096;

/// The largest value by default, in bytes.
pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most operations in one branch of a transaction, and the most comparisons.
pub const TXN_OPERATIONS_MAX: usize = 1_024;

/// The most bytes of keys and values in one transaction; what a single put of the largest value needs fits.
pub const TXN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The most keys that the range reads, counts and range deletes of one transaction may pass, all together: what bounds the
/// time for which one command keeps every replica from the next. Part of the replicated behaviour.
pub const TXN_KEYS_MAX: usize = 100_000;

/// The most records in one page of a listing, and in one `get` of a range inside a transaction.
pub const PAGE_RECORDS_MAX: usize = 10_000;

/// The records in a page where the caller names no limit.
pub const PAGE_RECORDS_DEFAULT: usize = 1_000;

/// A page ends early once it holds this many bytes of keys and values.
pub const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The largest number that JSON carries exactly: ids, terms and revisions stay below 2^53.
pub const JSON_INTEGER_MAX: u64 = (1 << 53) - 1;

const _: () = assert!(TXN_BYTES_MAX >= VALUE_BYTES_MAX + KEY_BYTES_MAX);
const _: () = assert!(PAGE_RECORDS_DEFAULT <= PAGE_RECORDS_MAX);
const _: () = assert!(PAGE_RECORDS_MAX <= TXN_KEYS_MAX);
