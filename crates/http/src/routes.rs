//! Which paths exist, and which part responds to each.

use alknet_core::HttpMount;
use axum::Router;
use http::Method;
use std::sync::Arc;
use thiserror::Error;

use crate::shared::HttpHandlerParts;

/// The part that responds to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteKind {
    /// The challenges of a certificate authority.
    Acme,
    /// One of the gateway's own paths.
    Api(ApiRoute),
    /// Routes of the application that embeds this crate, and mounts.
    Custom,
    /// `/healthz`
    Health,
    /// `/mcp`
    Mcp,
    /// Any other path: the static site or the decoy.
    Other,
    /// The page for administrators.
    Page,
    /// A WebSocket with the call protocol.
    Session,
    /// A stream of events that a ticket allows.
    Ticket,
}

/// The paths of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApiRoute {
    Batch,
    Call,
    Metrics,
    Description,
    Schema,
    Search,
    Subscribe,
}

/// The path of the challenges of a certificate authority (RFC 8555 section 8.3).
pub(crate) const ACME: &str = "/.well-known/acme-challenge/";
/// The path of tickets for streams of events.
pub(crate) const TICKET: &str = "/subscribe/t/";
/// The path of the page, besides `/`.
const PAGE: &str = "/status/";

/// The paths of this crate, which no other route may use. A slash at the end includes all paths
/// below.
const TAKEN: [&str; 15] = [
    "/",
    ACME,
    "/alknet/",
    "/batch",
    "/call",
    "/enroll",
    "/healthz",
    "/mcp",
    "/metrics",
    "/openapi.json",
    "/ping",
    "/relay",
    "/schema",
    "/search",
    "/subscribe",
];

impl ApiRoute {
    pub(crate) fn method(self) -> Method {
        match self {
            Self::Batch | Self::Call | Self::Subscribe => Method::POST,
            Self::Metrics | Self::Description | Self::Schema | Self::Search => Method::GET,
        }
    }
}

/// The part that responds to `path`. `custom` says whether an added route or mount does.
pub(crate) fn kind(path: &str, custom: bool) -> RouteKind {
    match path {
        "/call" => RouteKind::Api(ApiRoute::Call),
        "/batch" => RouteKind::Api(ApiRoute::Batch),
        "/subscribe" => RouteKind::Api(ApiRoute::Subscribe),
        "/search" => RouteKind::Api(ApiRoute::Search),
        "/schema" => RouteKind::Api(ApiRoute::Schema),
        "/openapi.json" => RouteKind::Api(ApiRoute::Description),
        "/metrics" => RouteKind::Api(ApiRoute::Metrics),
        "/healthz" => RouteKind::Health,
        "/mcp" => RouteKind::Mcp,
        "/alknet/call" => RouteKind::Session,
        "/" => RouteKind::Page,
        _ if path.starts_with(PAGE) => RouteKind::Page,
        _ if path.starts_with(TICKET) => RouteKind::Ticket,
        _ if path.starts_with(ACME) => RouteKind::Acme,
        // The paths of this crate come first. `router` refuses added routes with the same paths.
        _ if custom => RouteKind::Custom,
        _ => RouteKind::Other,
    }
}

/// The reason why the paths are in conflict.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteError {
    /// The crate itself responds to this path.
    #[error("'{0}' is a path of the HTTP server's own; take another one")]
    Taken(String),
    /// Two parts use the same path.
    #[error("'{0}' is answered by two parts; take another path for one of them")]
    Twice(String),
    /// A path must begin with `/` and continue with at least one character.
    #[error("'{0}' is no path to answer; it begins with '/' and goes on")]
    Wrong(String),
}

/// The routes of the application, after all paths were checked.
pub(crate) fn router(parts: &HttpHandlerParts) -> Result<Router, RouteError> {
    let mut seen: Vec<String> = Vec::new();
    let mut take = |path: &str| {
        let named = path.strip_prefix('/').is_some_and(|rest| !rest.is_empty());
        let first = path.split('/').nth(1).unwrap_or_default().to_owned();
        if !named || first.is_empty() {
            return Err(RouteError::Wrong(path.to_owned()));
        }
        let own = TAKEN.iter().chain([&PAGE]).any(|taken| {
            let taken = taken.strip_suffix('/').unwrap_or(taken);
            !taken.is_empty() && taken.split('/').nth(1) == Some(first.as_str())
        });
        if own {
            return Err(RouteError::Taken(path.to_owned()));
        }
        if seen.contains(&path.to_owned()) {
            return Err(RouteError::Twice(path.to_owned()));
        }
        seen.push(path.to_owned());
        Ok(())
    };
    let mut router = Router::new();
    for (path, route) in &parts.routes {
        take(path)?;
        router = router.route(path, route.clone());
    }
    for mount in &parts.mounts {
        let prefix = mount.prefix();
        take(prefix)?;
        // A route below a mount would hide a part of it.
        if parts.routes.iter().any(|(path, _)| below(path, prefix)) {
            return Err(RouteError::Twice(prefix.to_owned()));
        }
    }
    Ok(router)
}

fn below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The mount that responds to `path`.
pub(crate) fn mount<'a>(
    mounts: &'a [Arc<dyn HttpMount>],
    path: &str,
) -> Option<&'a Arc<dyn HttpMount>> {
    mounts.iter().find(|mount| below(path, mount.prefix()))
}

/// Whether `route`, in the router's form (`/a/{b}/{*rest}`), matches `path`.
pub(crate) fn matches(route: &str, path: &str) -> bool {
    let (mut route, mut path) = (route.split('/'), path.split('/'));
    loop {
        match (route.next(), path.next()) {
            (None, None) => return true,
            (Some(part), Some(_)) if part.starts_with("{*") => return true,
            (Some(part), Some(here)) if part.starts_with('{') && !here.is_empty() => {}
            (Some(part), Some(here)) if part == here => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_their_owner() {
        let kind = |path| kind(path, false);
        assert_eq!(kind("/call"), RouteKind::Api(ApiRoute::Call));
        assert_eq!(kind("/call/"), RouteKind::Other);
        assert_eq!(kind("/Call"), RouteKind::Other);
        assert_eq!(kind("/subscribe/t/x"), RouteKind::Ticket);
        assert_eq!(kind("/status/style.css"), RouteKind::Page);
        assert_eq!(kind("/.well-known/acme-challenge/x"), RouteKind::Acme);
        assert_eq!(kind("/node/info"), RouteKind::Other);
        assert_eq!(kind("/alknet/call"), RouteKind::Session);
        assert_eq!(kind("/alknet/channels"), RouteKind::Other);
    }

    #[test]
    fn routes_match_whole_paths() {
        for (route, path, fits) in [
            ("/a", "/a", true),
            ("/a", "/a/b", false),
            ("/a/{b}", "/a/x", true),
            ("/a/{b}", "/a/", false),
            ("/a/{*rest}", "/a/b/c", true),
        ] {
            assert_eq!(matches(route, path), fits, "{route} {path}");
        }
    }
}
