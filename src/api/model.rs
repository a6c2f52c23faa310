//! The wire types of the client API: what stands in JSON bodies, for the server and the client alike.
//!
//! Guarantees: byte strings are plain strings where they are UTF-8 and base64 under `…_base64` otherwise, in both
//! directions; unknown fields in a request are an error. Leaves out: headers and status codes (the handlers), and keys in
//! paths.
