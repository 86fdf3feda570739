//! The parts of the configuration that can change while the node serves.

use alknet_core::config::{Decoy, HttpSection, NodeConfig};
use alknet_gateway::Quota;
use http::HeaderValue;

use crate::hosts::Hosts;
use crate::limits::{HSTS_MAX_AGE_S, HttpTimeouts, SITE_OPEN_FILES_MAX, SMALL_MEMORY_BYTES};

/// The current settings.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    pub(crate) hosts: Hosts,
    pub(crate) decoy: Decoy,
    pub(crate) redirect: Option<HeaderValue>,
    pub(crate) stealth: bool,
    pub(crate) healthz: bool,
    pub(crate) server: Option<HeaderValue>,
    pub(crate) public_openapi: bool,
    pub(crate) origins: Vec<String>,
    /// The header for names with a TLS promise.
    pub(crate) hsts: Option<HeaderValue>,
    pub(crate) quota: Quota,
    pub(crate) patience: HttpTimeouts,
    pub(crate) site_open_files: usize,
}

impl HttpSettings {
    /// The settings of a configuration.
    #[must_use]
    pub fn new(config: &NodeConfig) -> Self {
        let http = &config.http;
        let header = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        Self {
            hosts: Hosts::new(config),
            decoy: http.decoy,
            redirect: header(&http.redirect),
            stealth: http.stealth,
            healthz: http.healthz,
            server: header(&http.server),
            public_openapi: http.public_openapi,
            origins: http.cors.origins.clone(),
            hsts: hsts(http),
            quota: quota(http),
            patience: HttpTimeouts::default(),
            site_open_files: SITE_OPEN_FILES_MAX,
        }
    }

    /// The same settings for a machine with this memory: a small one runs a quarter of the calls at once, and the
    /// requests in progress may use a part of the memory.
    #[must_use]
    pub fn for_memory(mut self, bytes: u64) -> Self {
        self.quota = self.quota.for_memory(bytes);
        if bytes <= SMALL_MEMORY_BYTES {
            self.quota.calls /= 4;
            self.quota.calls_each /= 4;
            self.quota.streams_each /= 4;
        }
        self
    }

    /// The same settings for a node that also answers to the name in its own certificate.
    #[must_use]
    pub fn with_key_name(mut self, name: &str) -> Self {
        self.hosts.set_key_name(name);
        self
    }

    /// The same settings with other time limits.
    #[must_use]
    pub fn with_patience(mut self, patience: HttpTimeouts) -> Self {
        self.patience = patience;
        self
    }

    /// The same settings with another limit of the site's open files than [`SITE_OPEN_FILES_MAX`]. A handler keeps the
    /// one of its first settings.
    #[must_use]
    pub fn with_site_open_files(mut self, most: usize) -> Self {
        self.site_open_files = most;
        self
    }

    /// The configured names that the node answers to, for other parts that check them.
    #[must_use]
    pub fn names(&self) -> &[String] {
        self.hosts.names()
    }
}

/// The policy (RFC 6797 section 6.1). The directive `preload` is for the lists that browsers include.
fn hsts(http: &HttpSection) -> Option<HeaderValue> {
    let section = &http.hsts;
    if !section.enabled {
        return None;
    }
    let mut policy = format!("max-age={HSTS_MAX_AGE_S}");
    for (wanted, directive) in [
        (section.include_subdomains, "; includeSubDomains"),
        (section.preload, "; preload"),
    ] {
        if wanted {
            policy.push_str(directive);
        }
    }
    policy.parse().ok()
}

fn quota(http: &HttpSection) -> Quota {
    let standard = Quota::default();
    Quota {
        per_second: http.requests_per_second,
        // A burst below the rate would make the rate unreachable.
        burst: http.requests_burst.max(http.requests_per_second),
        unknown_peer_per_second: http.unknown_peer_requests_per_second,
        unknown_peer_burst: standard
            .unknown_peer_burst
            .max(http.unknown_peer_requests_per_second),
        ..standard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_runs_a_quarter_at_once() {
        let settings = || HttpSettings::new(&NodeConfig::default());
        let usual = Quota::default();
        let large = settings().for_memory(16 * SMALL_MEMORY_BYTES);
        assert_eq!(large.quota, usual);
        let small = settings().for_memory(SMALL_MEMORY_BYTES);
        let quarter = Quota {
            calls: 64,
            calls_each: 8,
            streams_each: 16,
            bytes: 64 << 20,
            bytes_each: 32 << 20,
            unknown_peer_bytes: 16 << 20,
            unknown_peer_bytes_each: 4 << 20,
            ..usual
        };
        assert_eq!(small.quota, quarter);
    }
}
