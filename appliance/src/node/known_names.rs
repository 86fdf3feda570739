//! Operations and scopes that a configuration names: which of them this program can have.

use std::collections::BTreeSet;

use alknet_call::{Dispatcher, Registry, is_reserved_namespace};
use alknet_core::config::{ConfigError, NodeConfig, is_granted_by};
use alknet_init::control::MachineDiagnostic;

/// Operations of the program, in some configuration, that answer once. Each can be a tool.
const OPERATIONS: [&str; 136] = [
    "compute/dispatch",
    "compute/info",
    "compute/matmul",
    "compute/sha256",
    "config/apply",
    "config/list-files",
    "config/remove-file",
    "config/show",
    "config/store-file",
    "escrow/approve",
    "escrow/change",
    "escrow/deposit",
    "escrow/list",
    "escrow/release",
    "escrow/revoke",
    "fs/backup",
    "fs/batch",
    "fs/blob/pin",
    "fs/blob/providers",
    "fs/blob/status",
    "fs/blob/unpin",
    "fs/branch/close",
    "fs/branch/create",
    "fs/branch/delete",
    "fs/branch/diff",
    "fs/branch/list",
    "fs/branch/merge",
    "fs/branch/rebase",
    "fs/branch/set",
    "fs/bucket/create",
    "fs/bucket/delete",
    "fs/bucket/list",
    "fs/bucket/set",
    "fs/bucket/usage",
    "fs/copy",
    "fs/delete",
    "fs/history",
    "fs/link",
    "fs/list",
    "fs/mkdir",
    "fs/notify/ack",
    "fs/notify/add",
    "fs/notify/claim",
    "fs/notify/events",
    "fs/notify/lock/release",
    "fs/notify/lock/renew",
    "fs/notify/lock/show",
    "fs/notify/lock/take",
    "fs/notify/queue/ack",
    "fs/notify/queue/claim",
    "fs/notify/queue/dead",
    "fs/notify/queue/enqueue",
    "fs/notify/queue/remove",
    "fs/notify/queue/renew",
    "fs/notify/queue/requeue",
    "fs/notify/queue/retry",
    "fs/notify/queue/usage",
    "fs/notify/release",
    "fs/notify/remove",
    "fs/notify/reset",
    "fs/put",
    "fs/rename",
    "fs/repair",
    "fs/restore",
    "fs/setattr",
    "fs/share",
    "fs/share/list",
    "fs/share/revoke",
    "fs/snapshot/create",
    "fs/snapshot/delete",
    "fs/snapshot/list",
    "fs/stat",
    "fs/symlink",
    "fs/sync/status",
    "fs/write/abort",
    "fs/write/chunk",
    "fs/write/close",
    "fs/write/open",
    "hub/invite",
    "hub/invoke",
    "hub/peers",
    "hub/peers/approve",
    "hub/peers/label",
    "hub/peers/remove",
    "hub/update",
    "hub/update_read",
    "hub/update_status",
    "hub/whoami",
    "node/check-storage",
    "node/info",
    "node/metrics",
    "node/page-ticket",
    "node/poweroff",
    "node/reboot",
    "node/rotate-key",
    "ops/promote",
    "ops/proposals",
    "ops/propose",
    "ops/rollback",
    "peer/add",
    "peer/list",
    "peer/remove",
    "peer/rotate-key",
    "peer/set",
    "runtime/eval",
    "runtime/kill",
    "runtime/sessions",
    "runtime/stats",
    "services/list",
    "services/list-peers",
    "services/schema",
    "session/authenticate",
    "tensor/create",
    "tensor/drop",
    "tensor/list",
    "tensor/open",
    "tensor/put",
    "tensor/read",
    "tensor/remove",
    "tensor/stat",
    "tensor/write",
    "token/list",
    "token/make",
    "token/revoke",
    "update/apply",
    "update/cancel",
    "update/check",
    "update/confirm",
    "update/log",
    "update/offer",
    "update/rollback",
    "update/stage",
    "update/status",
    "update/write",
    "vault/lock",
    "vault/status",
];

/// Operations that answer many times, which cannot be tools.
const SUBSCRIPTIONS: [&str; 10] = [
    "fs/blob/fetch",
    "fs/blob/verify",
    "fs/gc",
    "fs/read",
    "fs/scrub",
    "fs/watch",
    "hub/subscribe",
    "node/log",
    "services/watch",
    "tensor/fetch",
];

/// The scope with which a peer may call an operation, for those that a hub passes on. Any of `update/*` but
/// `update/status`, `update/check` and `update/log` is left out: it asks for a scope by what its input says.
const SCOPE_OF: [(&str, &str); 44] = [
    ("compute/dispatch", "compute:kernel"),
    ("compute/info", "compute:read"),
    ("compute/matmul", "compute:run"),
    ("compute/sha256", "compute:run"),
    ("config/apply", ADMIN),
    ("config/list-files", ADMIN),
    ("config/remove-file", ADMIN),
    ("config/show", ADMIN),
    ("config/store-file", ADMIN),
    ("escrow/approve", "escrow:admin"),
    ("escrow/change", "escrow:admin"),
    ("escrow/list", "escrow:admin"),
    ("escrow/revoke", "escrow:admin"),
    ("node/check-storage", ADMIN),
    ("node/info", "node:read"),
    ("node/log", ADMIN),
    ("node/metrics", "metrics:read"),
    ("node/page-ticket", ADMIN),
    ("node/poweroff", ADMIN),
    ("node/reboot", ADMIN),
    ("node/rotate-key", ADMIN),
    ("ops/promote", "ops:promote"),
    ("ops/propose", "ops:propose"),
    ("ops/rollback", "ops:promote"),
    ("peer/add", ADMIN),
    ("peer/list", "peer:list"),
    ("peer/remove", ADMIN),
    ("peer/set", ADMIN),
    ("runtime/eval", "runtime:debug"),
    ("runtime/kill", "runtime:admin"),
    ("runtime/sessions", "runtime:read"),
    ("runtime/stats", "runtime:read"),
    ("services/list-peers", "peer:list"),
    ("tensor/create", "compute:run"),
    ("tensor/drop", "compute:run"),
    ("tensor/read", "compute:run"),
    ("tensor/write", "compute:run"),
    ("token/list", ADMIN),
    ("token/make", ADMIN),
    ("token/revoke", ADMIN),
    ("update/log", "update:read"),
    ("update/status", "update:read"),
    ("vault/lock", ADMIN),
    ("vault/status", ADMIN),
];

/// The scope of administrators, which no entry of a peer may have.
pub(crate) const ADMIN: &str = "admin";

/// Scopes that operations of the program require.
const SCOPES: [&str; 21] = [
    "admin",
    "compute:kernel",
    "compute:read",
    "compute:run",
    "escrow",
    "escrow:admin",
    "hub:admin",
    "hub:invite",
    "hub:read",
    "metrics:read",
    "node:read",
    "ops:promote",
    "ops:propose",
    "peer:list",
    "runtime:admin",
    "runtime:debug",
    "runtime:read",
    "update:apply",
    "update:offer",
    "update:read",
    "update:stage",
];

/// Scopes that parts of the node check and no operation declares. `*` stands for every end.
/// Promoted operations require scopes below `call:`, unless their reviewer chose others, and
/// imported ones require scopes below `import:`.
const SCOPE_FAMILIES: [&str; 14] = [
    "call:*",
    "forward:identity",
    "fs:admin:*",
    "fs:merge:*",
    "fs:push:*",
    "fs:read:*",
    "fs:sync:*",
    "fs:write:*",
    "hub:invoke:*",
    "hub:transit",
    "import:*",
    "peer:route:*",
    "tensor:read:*",
    "tensor:write:*",
];

/// What the scopes begin with that a part of the node knows and that allow nothing yet.
const SCOPE_WITHOUT_EFFECT: &str = "fs:push:";

/// Hint for such a scope.
const NO_PUSH: &str = "the node takes no contents over '/iroh-bytes/4': a peer that is to store files needs \
                       'fs:write:BUCKET', and one that keeps a bucket the same 'fs:sync:BUCKET'";

/// The family of every scope.
const ANY_SCOPE: &str = "*";

/// Maximum number of names that one problem lists.
const NAMES_LISTED_MAX: usize = 8;

/// Hint for names of operations that match nothing.
const OPERATION_SPELLING: &str = "write it as 'alknet ops list' prints it";

/// Hint for scopes that match nothing and are like none.
const SCOPE_SPELLING: &str = "'alknet ops show OPERATION' prints the scopes of an operation";

/// Least similarity (Jaro-Winkler) at which an operation or a scope is offered for another one.
const SIMILAR_MIN: f64 = 0.85;

/// Names of a document that the program does not have.
#[derive(Debug, Default)]
pub(crate) struct UnknownNames {
    /// Names that never match.
    pub(crate) errors: Vec<ConfigError>,
    /// Names that match no operation of the program, and perhaps a promoted one.
    pub(crate) warnings: Vec<ConfigError>,
}

/// Checks the names of `config` without a running node.
pub(crate) fn unknown_names(config: &NodeConfig) -> UnknownNames {
    let mut found = UnknownNames::default();
    for (n, tool) in config.http.mcp.tools.iter().enumerate() {
        let path = format!("http.mcp.tools[{n}]");
        let name = plain(tool);
        let error = |what, hint| finding(path.clone(), what, hint);
        // The node learns at runtime which tools a server serves.
        if OPERATIONS.contains(&name) || import_of(config, name).is_some() {
            continue;
        }
        if SUBSCRIPTIONS.contains(&name) {
            let what =
                format!("'{name}' is a subscription, which answers many times: it can be no tool");
            found
                .errors
                .push(error(what, OPERATION_SPELLING.to_owned()));
        } else if is_reserved_namespace(name.split('/').next().unwrap_or_default()) {
            // A promoted operation cannot have a name in a reserved namespace.
            let what = format!("no operation is called '{name}', and none can be");
            found.errors.push(error(what, tool_hint(name)));
        } else {
            let what = format!(
                "the program has no operation '{name}': it is a tool once a script is promoted to that name"
            );
            found.warnings.push(error(what, tool_hint(name)));
        }
    }
    for (key, scope) in config.granted_scopes() {
        if !is_known(scope) {
            let who = match is_of_program_scopes(scope) {
                true => "no operation asks for the scope",
                false => {
                    "no operation of the program asks for the scope, and perhaps a promoted one does:"
                }
            };
            let what = format!("{who} '{scope}'");
            found.warnings.push(finding(key, what, scope_hint(scope)));
        } else if scope.starts_with(SCOPE_WITHOUT_EFFECT) {
            // No problem of a running node: a later version may give it its meaning.
            let what = format!("the scope '{scope}' allows nothing yet");
            found.warnings.push(finding(key, what, NO_PUSH.to_owned()));
        }
    }
    found
}

/// Like `unknown_names`, for a running node: tools that do not exist now, and scopes that no operation requires.
/// It ignores scopes outside the program's own names, because promoted operations and operations of
/// peers may require them.
pub(super) fn problems(config: &NodeConfig, registry: &Registry) -> Vec<MachineDiagnostic> {
    let promoted = registry.generation();
    let specs = || registry.specs().chain(promoted.specs());
    let http = &config.http;
    let tools = http.mcp.tools.iter().map(|tool| plain(tool));
    // An import that has not succeeded yet is a problem of its own, so its tools do not count as
    // unknown.
    let is_imported = |name: &str| {
        import_of(config, name).is_some_and(|from| registry.has_imported(from, name) != Some(false))
    };
    let unknown_tools = tools.filter(|name| {
        http.enabled
            && http.mcp.enabled
            && specs().all(|spec| spec.name != *name)
            && !is_imported(name)
    });
    let is_required = |scope: &str| {
        specs().any(|spec| {
            let rule = &spec.access_control;
            let any = rule.required_scopes_any.iter().flatten();
            let mut needed = rule.required_scopes.iter().chain(any);
            needed.any(|known| is_granted_by(known, scope))
        })
    };
    let mut unknown_scopes: Vec<&str> = config
        .granted_scopes()
        .into_iter()
        .map(|(_, scope)| scope)
        .filter(|scope| is_of_program_scopes(scope) && !is_known(scope) && !is_required(scope))
        .collect();
    unknown_scopes.sort_unstable();
    unknown_scopes.dedup();
    // A hint has room for one name, and the others are likely to have the same cause.
    let hint = unknown_scopes.first().map(|scope| scope_hint(scope));
    let tools = listed(unknown_tools.collect()).map(|names| MachineDiagnostic {
        code: "mcp-tool-unknown".to_owned(),
        text: format!("http.mcp.tools names operations that this node does not have: {names}"),
        hint: "promote a script to that name, or correct http.mcp.tools and restart".to_owned(),
    });
    let scopes = listed(unknown_scopes).map(|names| MachineDiagnostic {
        code: "scope-unknown".to_owned(),
        text: format!("the configuration grants scopes that no operation asks for: {names}"),
        hint: hint.unwrap_or_default(),
    });
    tools.into_iter().chain(scopes).collect()
}

/// The scopes that something on a node asks for at this moment, promoted operations included. A node that stops asks
/// for any.
pub(super) fn requested_scopes(dispatcher: Option<&Dispatcher>) -> BTreeSet<String> {
    let Some(dispatcher) = dispatcher else {
        return [ANY_SCOPE.to_owned()].into();
    };
    let registry = dispatcher.registry();
    let promoted = registry.generation();
    let rules = registry.specs().chain(promoted.specs());
    let rules = rules.map(|spec| &spec.access_control);
    let scopes = rules.flat_map(|rule| {
        let any = rule.required_scopes_any.iter().flatten();
        rule.required_scopes.iter().chain(any).cloned()
    });
    let families = SCOPE_FAMILIES.map(str::to_owned);
    scopes.chain(families).collect()
}

/// Whether an operation of this name belongs to the program, in some configuration.
pub(crate) fn has_operation(name: &str) -> bool {
    OPERATIONS.contains(&name) || SUBSCRIPTIONS.contains(&name)
}

/// The scope with which a peer may call an operation of the program; `None` where that depends on the input.
pub(crate) fn scope_of(operation: &str) -> Option<&'static str> {
    let mut known = SCOPE_OF.iter();
    known
        .find(|(name, _)| *name == operation)
        .map(|(_, scope)| *scope)
}

/// The first of some names as a text. Returns `None` if there are no names.
fn listed(names: Vec<&str>) -> Option<String> {
    let shown: Vec<_> = names
        .iter()
        .take(NAMES_LISTED_MAX)
        .map(|name| format!("'{name}'"))
        .collect();
    let more = match names.len().saturating_sub(NAMES_LISTED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!shown.is_empty()).then(|| format!("{}{more}", shown.join(", ")))
}

fn finding(path: String, what: String, fix: String) -> ConfigError {
    ConfigError {
        path,
        line: None,
        what,
        fix,
    }
}

/// What to write in the place of a tool that is no operation of the program.
fn tool_hint(name: &str) -> String {
    hint(&mut OPERATIONS.iter(), name, OPERATION_SPELLING)
}

/// What to write in the place of a scope that no operation asks for.
fn scope_hint(scope: &str) -> String {
    let mut known = SCOPES.iter().chain(&SCOPE_FAMILIES);
    hint(&mut known, scope, SCOPE_SPELLING)
}

/// The known name that is most like `name`, if one is like it at all, before the advice on spelling.
fn hint(known: &mut dyn Iterator<Item = &&str>, name: &str, spelling: &str) -> String {
    let near = known.map(|known| (strsim::jaro_winkler(known, name), *known));
    let near = near.filter(|(likeness, _)| *likeness > SIMILAR_MIN);
    let nearest = near.max_by(|one, other| one.0.total_cmp(&other.0));
    match nearest {
        Some((_, known)) => format!("did you mean '{known}'? {spelling}"),
        None => spelling.to_owned(),
    }
}

/// An operation's name without a leading slash.
fn plain(operation: &str) -> &str {
    operation.strip_prefix('/').unwrap_or(operation)
}

/// The namespace of the import that would serve an operation of this name.
fn import_of<'a>(config: &'a NodeConfig, name: &str) -> Option<&'a str> {
    let (first, _) = name.split_once('/')?;
    let mut imports = config.http.import.iter().map(|one| one.namespace.as_str());
    imports.find(|namespace| *namespace == first)
}

/// Whether a scope begins with the same segment as one of the program's scopes.
fn is_of_program_scopes(scope: &str) -> bool {
    let first = |name: &str| name.split(':').next() == scope.split(':').next();
    SCOPES.iter().chain(&SCOPE_FAMILIES).any(|own| first(own))
}

/// Whether the program has this scope, or one that the pattern covers.
fn is_known(scope: &str) -> bool {
    let mut known = SCOPES.iter().chain(&SCOPE_FAMILIES);
    known.any(|known| is_granted_by(known, scope))
}

#[cfg(test)]
mod tests {
    use alknet_call::{CallError, HandlerKind, OperationSpec, Provenance, Registration};
    use serde_json::Value;

    use super::*;

    fn config(text: &str) -> NodeConfig {
        NodeConfig::parse(text.as_bytes()).expect("a correct document")
    }

    fn peer(scopes: &[&str]) -> NodeConfig {
        let key = format!("ed25519:{}", "1".repeat(64));
        config(&format!(
            "[[peers]]\npeer_id = \"ada\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n"
        ))
    }

    fn texts(found: &[ConfigError]) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    /// A registry with one operation, which requires a scope.
    fn registry() -> Registry {
        let handler = HandlerKind::once(|_, _| async { Ok::<_, CallError>(Value::Null) });
        let spec = OperationSpec::query("node/info", "").with_scope("node:custom");
        let registry = Registry::builder().with(Registration::new(spec, handler));
        registry.build().expect("every rule is kept")
    }

    #[test]
    fn every_operation_with_a_scope_is_known_with_it() {
        assert!(SCOPE_OF.is_sorted());
        for (name, scope) in SCOPE_OF {
            assert!(has_operation(name), "{name}");
            assert!(SCOPES.contains(&scope), "{name}: {scope}");
        }
    }

    #[test]
    fn tools_that_never_match_are_mistakes() {
        let found = unknown_names(&config(
            "[http.mcp]\ntools = [\"node/info\", \"node/inof\", \"/node/log\", \"js/later\"]\n",
        ));
        let errors = texts(&found.errors);
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].starts_with("http.mcp.tools[1]: no operation is called 'node/inof'"));
        assert!(
            errors[0].contains("; did you mean 'node/info'? "),
            "{errors:?}"
        );
        assert!(errors[1].starts_with("http.mcp.tools[2]: 'node/log' is a subscription"));
        let warnings = texts(&found.warnings);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("'js/later'"), "{warnings:?}");
        assert!(!warnings[0].contains("did you mean"), "{warnings:?}");
    }

    #[test]
    fn scopes_that_nothing_asks_for_are_named_with_their_key() {
        let found = unknown_names(&peer(&[
            "node:raed",
            "ssh:exec:uptime",
            "fs:read:docs",
            "fs:*",
            "node:read",
            "hub:invoke:node",
            "peer:route:*",
            "tensor:read:a",
            "call:js:total",
            "compute:*",
        ]));
        let warnings = texts(&found.warnings);
        assert!(
            found.errors.is_empty() && warnings.len() == 2,
            "{warnings:?}"
        );
        let own = "peers[0].scopes[0]: no operation asks for the scope 'node:raed'";
        assert!(warnings[0].starts_with(own), "{warnings:?}");
        assert!(
            warnings[0].contains("did you mean 'node:read'?"),
            "{warnings:?}"
        );
        assert!(warnings[1].contains("perhaps a promoted one does: 'ssh:exec:uptime'"));
        assert!(
            !warnings[1].contains("did you mean") && warnings[1].contains("'alknet ops show"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_scope_that_allows_nothing_yet_is_named_with_its_key() {
        let scopes = ["fs:read:docs", "fs:push:docs", "fs:push:*", "fs:*"];
        let config = peer(&scopes);
        let found = unknown_names(&config);
        let warnings = texts(&found.warnings);
        assert!(
            found.errors.is_empty() && warnings.len() == 2,
            "{warnings:?}"
        );
        for (at, warning) in [1, 2].into_iter().zip(&warnings) {
            let said = format!(
                "peers[0].scopes[{at}]: the scope '{}' allows nothing yet",
                scopes[at]
            );
            assert!(warning.starts_with(&said), "{warning}");
            assert!(warning.contains("'fs:write:BUCKET'"), "{warning}");
        }
        assert_eq!(problems(&config, &registry()), []);
    }

    #[test]
    fn a_node_that_runs_names_what_it_does_not_have() {
        let mut config = peer(&["node:raed", "node:custom", "ssh:exec:uptime", "hub:admin"]);
        config.http.mcp.tools = ["/node/info", "js/later"].map(str::to_owned).into();
        let found = problems(&config, &registry());
        let codes: Vec<_> = found.iter().map(|it| it.code.as_str()).collect();
        assert_eq!(codes, ["mcp-tool-unknown", "scope-unknown"]);
        assert!(found[0].text.ends_with(": 'js/later'"), "{}", found[0].text);
        assert!(
            found[1].text.ends_with(": 'node:raed'"),
            "{}",
            found[1].text
        );
        let hint = &found[1].hint;
        assert!(hint.contains("'node:read'"), "{hint}");
        config.http.mcp.enabled = false;
        config.peers.clear();
        assert_eq!(problems(&config, &registry()), []);
    }

    /// The node knows which operations a server serves once it has imported them.
    #[test]
    fn a_tool_of_an_import_is_unknown_once_its_server_does_not_serve_it() {
        let config = config(
            "[http.mcp]\ntools = [\"tools/add\", \"tools/gone\"]\n\
             [[http.import]]\nkind = \"mcp\"\nnamespace = \"tools\"\nurl = \"https://t.example/\"\n",
        );
        let unknown = unknown_names(&config);
        assert!(unknown.errors.is_empty() && unknown.warnings.is_empty());
        let registry = registry();
        assert_eq!(problems(&config, &registry), []);
        let handler = HandlerKind::once(|_, _| async { Ok::<_, CallError>(Value::Null) });
        let spec = OperationSpec::query("tools/add", "").internal();
        let add = Registration::imported(spec, handler, Provenance::FromMcp);
        let imported = registry.import("tools", vec![add.with_import_scope()]);
        imported.expect("no rule is broken");
        let found = problems(&config, &registry);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].text.ends_with(": 'tools/gone'"),
            "{}",
            found[0].text
        );
    }

    #[test]
    fn a_problem_lists_a_few_names() {
        let names: Vec<_> = (0..10).map(|n| format!("a/n{n}")).collect();
        let text = listed(names.iter().map(String::as_str).collect());
        let text = text.expect("there are some");
        assert!(
            text.starts_with("'a/n0', ") && text.ends_with(" and 2 more"),
            "{text}"
        );
        assert_eq!(listed(Vec::new()), None);
    }
}
