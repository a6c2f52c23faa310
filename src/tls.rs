//! The cryptography that TLS connections to the outside use.
//!
//! Guarantees: after [`install`] every TLS connection of this process uses ring, and certificates are checked against those
//! the system trusts. Leaves out: certificates of our own, for clients and between members.

/// Chooses ring for the whole process. Done again, it changes nothing.
pub fn install() {
    // An error says that one is installed already, which is the same one: nothing else in this program does.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
