//! Which node is asked next.
//!
//! Guarantees: calls stay with the endpoint that answered last, and each further attempt goes on to the next one. Leaves
//! out: measuring which is nearest.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Error;

/// The most endpoints a client takes.
const ENDPOINTS_MAX: usize = 64;

/// The endpoints of one cluster.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// Base URLs without a trailing slash; never empty.
    urls: Vec<String>,
    /// Where the last good answer came from. A hint: a lost update only costs an attempt.
    preferred: AtomicUsize,
}

impl Endpoints {
    pub(super) fn new(urls: Vec<String>) -> Result<Self, Error> {
        if urls.is_empty() || urls.len() > ENDPOINTS_MAX {
            return Err(Error::Usage(format!(
                "{} endpoints are given; give 1 to {ENDPOINTS_MAX}, like http://10.0.0.1:7480",
                urls.len()
            )));
        }
        let urls = urls.iter().map(|url| check(url)).collect::<Result<_, _>>()?;
        Ok(Self { urls, preferred: AtomicUsize::new(0) })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.urls.iter().map(String::as_str)
    }

    pub(super) fn len(&self) -> usize {
        self.urls.len()
    }

    /// Where the first attempt of a call goes.
    pub(super) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// The endpoint at a place that may have run past the end.
    pub(super) fn at(&self, place: usize) -> &str {
        &self.urls[place % self.urls.len()]
    }

    /// Calls go here first from now on.
    pub(super) fn prefer(&self, place: usize) {
        self.preferred.store(place % self.urls.len(), Ordering::Relaxed);
    }
}

/// One endpoint, checked, without its trailing slash.
fn check(text: &str) -> Result<String, Error> {
    let usage = |why: &str| Error::Usage(format!("the endpoint '{text}' {why}; it must be like http://10.0.0.1:7480"));
    let url = url::Url::parse(text.trim()).map_err(|error| usage(&format!("is no URL ({error})")))?;
    match url.scheme() {
        "http" => {}
        "https" => return Err(usage("asks for TLS, which this version does not speak")),
        other => return Err(usage(&format!("has the unknown scheme '{other}'"))),
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(usage("has more than a host and a port"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_plain_base_urls() {
        assert_eq!(check(" http://h:7480/ ").unwrap(), "http://h:7480");
        for bad in ["", "h:7480", "https://h", "http://h/v1", "http://h?x", "http://me@h"] {
            assert!(matches!(check(bad), Err(Error::Usage(_))), "{bad}");
        }
        assert!(matches!(Endpoints::new(Vec::new()), Err(Error::Usage(_))));
    }

    #[test]
    fn calls_stay_with_the_endpoint_that_answered() {
        let endpoints = Endpoints::new(vec!["http://a".into(), "http://b".into(), "http://c".into()]).unwrap();
        assert_eq!(endpoints.at(endpoints.preferred()), "http://a");
        endpoints.prefer(4);
        assert_eq!(endpoints.at(endpoints.preferred()), "http://b");
        assert_eq!(endpoints.at(endpoints.preferred() + 2), "http://a");
    }
}
