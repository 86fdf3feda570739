//! `config/show`: the configuration in force, without its secrets.

use alknet_call::{CallBody, CallError, Ctx, HandlerKind, OperationSpec, Registration};
use alknet_init::control::MachineFacts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::facts::{self, SharedFacts};
use super::identity_services::{ADMIN_SCOPE, IdentityServices};

/// The input of `config/show`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigShowInput {
    next: bool,
}

/// `config/show`
pub(crate) fn operation(identity_services: IdentityServices, facts: SharedFacts) -> Registration {
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "array", "items": text });
    let spec = OperationSpec::query(
        "config/show",
        "Returns the configuration in force, with every value but the secrets.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "next": { "type": "boolean", "default": false,
                      "description": "What the next start uses, in the place of what is in force" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["generation", "source", "restart_required", "withheld", "document", "config"],
        "properties": {
            "generation": { "type": "integer" },
            "source": text,
            "restart_required": texts,
            "withheld": texts,
            "keeps": { "type": "boolean", "description":
                "Whether the node keeps an applied document for its next start; without --config it does not" },
            "document": { "type": "string", "description": "The configuration as TOML" },
            "config": { "type": "object", "description": "The same as JSON" },
        }
    }))
    .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, _ctx: Ctx| {
        let request = match input.is_null() {
            true => Ok(ConfigShowInput::default()),
            false => input.parse(),
        };
        let answer = request.and_then(|request| shown(&identity_services, &facts.load(), &request));
        std::future::ready(answer)
    });
    Registration::new(spec, handler)
}

fn shown(
    identity_services: &IdentityServices,
    facts: &MachineFacts,
    request: &ConfigShowInput,
) -> Result<Value, CallError> {
    let current = identity_services.reloader.current();
    let config = match request.next {
        true => current.config.clone(),
        false => identity_services.reloader.running(&current),
    };
    let shown = config.without_secrets();
    let document = shown.to_toml().map_err(CallError::internal)?;
    let config = serde_json::to_value(&shown.config);
    let config = config.map_err(|error| CallError::internal(error.to_string()))?;
    Ok(json!({
        "generation": current.generation,
        "source": facts::config_source(&current, facts),
        "restart_required": current.restart_required,
        "withheld": shown.withheld,
        "keeps": identity_services.reloader.keeps(),
        "document": document,
        "config": config,
    }))
}

#[cfg(test)]
mod tests {
    use alknet_core::config::{ConfigChange, ConfigSource, NodeConfig};

    use super::*;
    use crate::node::{ConfigOverlay, ConfigStore};

    fn identity_services(document: &str) -> IdentityServices {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let store = crate::node::store::open(dir.path());
        let (overlay, config_store) = (ConfigOverlay::default(), ConfigStore::nowhere());
        crate::node::build_identity_services(&config, overlay, config_store, Vec::new(), store)
    }

    fn answer(identity_services: &IdentityServices, next: bool) -> Value {
        let facts = MachineFacts {
            config_source: "seed".to_owned(),
            ..MachineFacts::default()
        };
        shown(identity_services, &facts, &ConfigShowInput { next }).expect("it can be shown")
    }

    #[tokio::test]
    async fn what_waits_for_the_next_start_is_shown_apart() {
        let identity_services =
            identity_services("[listen]\nport = 4433\n[[join]]\ncode = \"alkjoin1_AAAA\"\n");
        let first = answer(&identity_services, false);
        assert_eq!(
            (&first["generation"], &first["source"], &first["withheld"]),
            (&json!(1), &json!("seed"), &json!(["join[0].code"]))
        );
        let document = b"[listen]\nport = 8443\n[log]\nlevel = \"debug\"\n";
        let change = ConfigChange::of_owner(document, ConfigSource::Operation("admin".to_owned()));
        let applied = identity_services.reloader.apply(&change).await;
        applied.expect("a correct document");
        let (now, next) = (
            answer(&identity_services, false),
            answer(&identity_services, true),
        );
        for answer in [&now, &next] {
            assert_eq!(answer["source"], "operation by admin");
            assert_eq!(answer["generation"], 2);
            assert_eq!(answer["restart_required"], json!(["listen.port"]));
            assert_eq!(answer["config"]["log"]["level"], "debug");
            assert_eq!(answer["keeps"], false);
        }
        assert_eq!(now["config"]["listen"]["port"], 4433);
        assert_eq!(next["config"]["listen"]["port"], 8443);
        let text = next["document"].as_str().expect("a text");
        assert!(text.contains("port = 8443"), "{text}");
    }
}
