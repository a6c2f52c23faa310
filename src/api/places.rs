//! How many connections there are, in total and by address.
//!
//! Guarantees: a place is given back when its guard is dropped. Leaves out: what is over a limit (`server`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

/// Which limit a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Total,
    Address,
}

/// Counts connections, in total and by address.
#[derive(Debug)]
pub(super) struct Places {
    taken: Mutex<Taken>,
    total_max: usize,
    per_ip_max: usize,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// A connection's place, left on drop.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    ip: IpAddr,
}

impl Places {
    pub(super) fn new(total_max: usize, per_ip_max: usize) -> Arc<Self> {
        Arc::new(Self { taken: Mutex::default(), total_max, per_ip_max })
    }

    pub(super) fn take(self: &Arc<Self>, ip: IpAddr) -> Result<Place, Full> {
        // An IPv4 client of a dual-stack listener is the same client.
        let ip = ip.to_canonical();
        let mut taken = self.taken.lock();
        if taken.total >= self.total_max {
            return Err(Full::Total);
        }
        let of_ip = taken.by_ip.entry(ip).or_default();
        if *of_ip >= self.per_ip_max {
            return Err(Full::Address);
        }
        *of_ip += 1;
        taken.total += 1;
        Ok(Place { places: Arc::clone(self), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.total -= 1;
        if let Some(of_ip) = taken.by_ip.get_mut(&self.ip) {
            *of_ip -= 1;
            if *of_ip == 0 {
                taken.by_ip.remove(&self.ip);
            }
        }
    }
}

/// Counts an open connection.
pub(super) struct Open(Gauge);

impl Open {
    pub(super) fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
