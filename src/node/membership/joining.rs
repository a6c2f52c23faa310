//! How a later member asks to be taken in, until it is.
//!
//! It asks the addresses it was given one after the other; whoever answers passes the order on to the leader, which dials
//! this node back, gives it an identity and has the log sent to it.
//!
//! Guarantees: asks again after every failure that may pass, also after a crash at any point; a refusal that no waiting
//! changes ends the start with the leader's words. Leaves out: what the leader looks at (`adding`).

use std::sync::Arc;
use std::time::Duration;

use super::{Change, ChangeOptions, Changed, MemberError, MemberRef, NewMember, Order, decode, encode};
use crate::clock;
use crate::node::forming::{FormingDesk, FormingError};
use crate::transport::{Channel, Transport};

/// How long one order may take: the leader calls this node twice and commits two entries meanwhile.
const ORDER_TIMEOUT: Duration = Duration::from_secs(15);

/// Pause between attempts.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// After this many attempts without success the operator is told what stands in the way, and again each as many.
const ATTEMPTS_PER_NOTICE: u32 = 10;

/// What a later member is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Peer addresses of members, to be asked in this order.
    pub addresses: Vec<String>,
    /// Whether it shall vote once it has caught up.
    pub votes: bool,
    /// The name of the member whose place it takes then.
    pub replaces: Option<String>,
}

/// Asks until it is taken in.
///
/// # Errors
/// [`FormingError::NotTaken`].
pub(in crate::node) async fn join(
    desk: &FormingDesk,
    transport: &Arc<dyn Transport>,
    join: &Join,
) -> Result<(), FormingError> {
    let had_identity = desk.identity().is_some();
    for attempt in 1_u32.. {
        let mut reasons = Vec::new();
        for address in &join.addresses {
            match ask(desk, &**transport, address, join).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error @ (MemberError::Conflict(_) | MemberError::UnknownMember { .. }))) => {
                    let (name, why) = (desk.member().name.clone(), error.to_string());
                    return Err(FormingError::NotTaken { name, why });
                }
                Ok(Err(error)) => reasons.push(format!("{address}: {error}")),
                Err(why) => reasons.push(format!("{address}: {why}")),
            }
        }
        // Somebody else has given the order.
        if !had_identity && desk.identity().is_some() {
            return Ok(());
        }
        if attempt % ATTEMPTS_PER_NOTICE == 0 {
            tracing::warn!(why = reasons.join("; "), "this node is not taken in yet");
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
    unreachable!("attempts are not counted to their end within the age of the universe")
}

async fn ask(
    desk: &FormingDesk,
    transport: &dyn Transport,
    address: &str,
    join: &Join,
) -> Result<Result<Changed, MemberError>, String> {
    let member = desk.member();
    let new = NewMember {
        name: member.name.clone(),
        peer_addr: member.peer_addr.clone(),
        client_url: Some(member.client_url.clone()),
        zone: Some(member.zone.clone()),
        votes: join.votes,
        replaces: join.replaces.clone().map(MemberRef::Name),
        ..NewMember::default()
    };
    let order = Order {
        cluster: desk.identity().map(|identity| identity.cluster),
        to: None,
        change: Change::Add(new),
        options: ChangeOptions::default(),
        timeout_ms: u64::try_from(ORDER_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
    };
    let call = transport.call(address, Channel::Forward, encode(&order), clock::now() + ORDER_TIMEOUT);
    let answer = call.await.map_err(|error| error.to_string())?;
    decode(&answer)
}
