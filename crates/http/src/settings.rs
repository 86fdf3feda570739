//! What of the configuration can change while the node serves.

use alknet_core::config::{Decoy, HttpSection, NodeConfig};
use alknet_gateway::Quota;
use http::HeaderValue;

use crate::hosts::Hosts;
use crate::limits::HSTS_MAX_AGE_S;

/// Settings in force.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) hosts: Hosts,
    pub(crate) decoy: Decoy,
    pub(crate) redirect: Option<HeaderValue>,
    pub(crate) stealth: bool,
    pub(crate) healthz: bool,
    pub(crate) server: Option<HeaderValue>,
    pub(crate) public_openapi: bool,
    pub(crate) origins: Vec<String>,
    /// What is said where TLS can be promised.
    pub(crate) hsts: Option<HeaderValue>,
    pub(crate) quota: Quota,
}

impl Settings {
    /// Those of a configuration.
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
        }
    }

    /// Names the node answers to, for parts that look at them, too.
    #[must_use]
    pub fn names(&self) -> &[String] {
        self.hosts.names()
    }
}

/// The policy (RFC 6797 section 6.1); `preload` is the word that the lists of browsers look for.
fn hsts(http: &HttpSection) -> Option<HeaderValue> {
    let asked = &http.hsts;
    if !asked.enabled {
        return None;
    }
    let mut policy = format!("max-age={HSTS_MAX_AGE_S}");
    for (wanted, directive) in [
        (asked.include_subdomains, "; includeSubDomains"),
        (asked.preload, "; preload"),
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
        burst: http.requests_burst.max(http.requests_per_second),
        stranger_per_second: http.stranger_requests_per_second,
        stranger_burst: standard
            .stranger_burst
            .max(http.stranger_requests_per_second),
        ..standard
    }
}
