//! The document of the gateway. It describes the gateway's fixed paths, which are the same on every node. It does not
//! describe operations: `/search` lists those that a caller may call.
//!
//! Every schema has a name, because generators invent names for schemas without one.

use serde_json::{Map, Value, json};

/// The version of the gateway's contract by semantic versioning, independent of the product's version. A new member
/// is a minor change; removing a path or a member is a major one.
pub const CONTRACT_VERSION: &str = "1.0.0";

/// The longest deadline of a call, in milliseconds.
const TIMEOUT_MS_MAX: u32 = 600_000;
/// The most calls of one batch.
const BATCH_MAX: u32 = 64;
/// The longest list that a search returns.
const LIMIT_MAX: u32 = 500;

/// The parts of the document that depend on this node.
#[derive(Clone, Copy, Debug)]
pub struct OpenApiContract<'a> {
    /// A digest that changes whenever the set of operations does.
    pub operations_digest: &'a str,
    /// Whether clients without a token may read the document (`http.public_openapi`).
    pub is_public: bool,
}

/// The document, OpenAPI 3.1.0.
#[must_use]
pub fn document(contract: &OpenApiContract<'_>) -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "alknet gateway",
            "version": CONTRACT_VERSION,
            "summary": "Calls operations of a node.",
            "description": "Every operation is called through /call with its name and input; /search \
                            lists those that the caller may call, /schema describes one of them.",
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        },
        "servers": [{ "url": "/", "description": "The node that serves this document." }],
        "security": [{ "bearerAuth": [] }],
        "tags": [
            { "name": "operations", "description": "Finding and calling operations." },
            { "name": "node", "description": "About the node itself." },
        ],
        "paths": {
            "/healthz": { "get": healthz() },
            "/search": { "get": search() },
            "/schema": { "get": schema() },
            "/call": { "post": call() },
            "/batch": { "post": batch() },
            "/subscribe": { "post": subscribe() },
            "/openapi.json": { "get": openapi(contract.is_public) },
            "/metrics": { "get": metrics() },
        },
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "bearerAuth": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of this node, alk_…; 'alknet token' makes them.",
                },
            },
        },
        "x-alknet-operations-digest": contract.operations_digest,
    })
}

fn healthz() -> Value {
    let text = |description: &str| answer(description, "text/plain", "HealthText");
    json!({
        "operationId": "healthz",
        "tags": ["node"],
        "summary": "Returns whether the node has a problem.",
        "security": [],
        "responses": {
            "200": text("The node has no problem."),
            "429": failure("Too many requests."),
            "503": text("The node has a problem; the reason follows the word."),
            "default": failure("Another failure."),
        },
    })
}

fn search() -> Value {
    let parameter = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "query", "description": description, "schema": schema });
    json!({
        "operationId": "search",
        "tags": ["operations"],
        "summary": "Lists the operations that the caller may call.",
        "parameters": [
            parameter("q", "Text in name, summary or tags, in either case.", json!({
                "type": "string", "maxLength": 256,
            })),
            parameter("namespace", "First segment of the name.", json!({
                "type": "string", "maxLength": 63,
            })),
            parameter("type", "How it is called.", reference("OperationType")),
            parameter("limit", "Most operations of the answer.", json!({
                "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 50,
            })),
            parameter("cursor", "Where an answer before ended: its member next.", json!({
                "type": "string", "maxLength": 256,
            })),
        ],
        "responses": responses(
            [("200", answer("A page, in the order of names.", JSON, "SearchResponse"))],
            &["400", "401", "403", "422", "429"],
        ),
    })
}

fn schema() -> Value {
    json!({
        "operationId": "schema",
        "tags": ["operations"],
        "summary": "Describes one operation.",
        "parameters": [{
            "name": "operation",
            "in": "query",
            "required": true,
            "description": "The name of the operation, with or without a slash first.",
            "schema": reference("OperationName"),
        }],
        "responses": responses(
            [("200", answer("The operation.", JSON, "OperationSchema"))],
            &["400", "401", "403", "404", "422", "429"],
        ),
    })
}

fn call() -> Value {
    json!({
        "operationId": "call",
        "tags": ["operations"],
        "summary": "Calls a query or a mutation.",
        "parameters": [idempotency_key()],
        "requestBody": body("CallRequest"),
        "responses": responses(
            [("200", answer("What the operation answered.", JSON, "CallResponse"))],
            &CALL_STATUSES,
        ),
    })
}

fn batch() -> Value {
    json!({
        "operationId": "batch",
        "tags": ["operations"],
        "summary": "Calls several operations.",
        "requestBody": body("BatchRequest"),
        "responses": responses(
            [("200", answer("What each call ended with, in the order of the request.", JSON, "BatchResponse"))],
            &["400", "401", "403", "413", "415", "422", "429", "503", "504"],
        ),
    })
}

fn subscribe() -> Value {
    json!({
        "operationId": "subscribe",
        "tags": ["operations"],
        "summary": "Subscribes to an operation's events.",
        "description": "The answer is a stream of server-sent events: data, then completed or error. \
                        With 'Prefer: respond-async' it is a ticket, which one GET may use for as long \
                        as it says.",
        "parameters": [
            {
                "name": "Prefer",
                "in": "header",
                "description": "respond-async asks for a ticket.",
                "schema": { "type": "string" },
            },
            idempotency_key(),
        ],
        "requestBody": body("CallRequest"),
        "responses": responses(
            [
                ("200", answer("The events.", "text/event-stream", "EventStream")),
                ("201", answer("A ticket.", JSON, "Ticket")),
            ],
            &[
                "400", "401", "403", "404", "406", "413", "415", "422", "429", "502", "503", "504",
            ],
        ),
    })
}

fn openapi(is_public: bool) -> Value {
    let mut operation = json!({
        "operationId": "openapi",
        "tags": ["node"],
        "summary": "This document.",
        "responses": responses(
            [("200", answer("The document.", JSON, "OpenApiDocument"))],
            &["401", "403", "429"],
        ),
    });
    // An empty list overrides the document's security requirement (OpenAPI 3.1, section 4.8.10).
    if is_public {
        operation["security"] = json!([]);
    }
    operation
}

fn metrics() -> Value {
    json!({
        "operationId": "metrics",
        "tags": ["node"],
        "summary": "What the node counts, in Prometheus' text form.",
        "description": "Needs the scope metrics:read.",
        "responses": responses(
            [("200", answer("The figures.", "text/plain", "MetricsText"))],
            &["401", "403", "429"],
        ),
    })
}

const JSON: &str = "application/json";

/// The statuses of `/call` that have a meaning of their own. An operation's own errors may have others.
const CALL_STATUSES: [&str; 13] = [
    "400", "401", "403", "404", "409", "413", "415", "422", "429", "500", "502", "503", "504",
];

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn answer(description: &str, media: &str, schema: &str) -> Value {
    json!({ "description": description, "content": { media: { "schema": reference(schema) } } })
}

fn failure(description: &str) -> Value {
    answer(description, JSON, "ErrorResponse")
}

fn body(schema: &str) -> Value {
    json!({ "required": true, "content": { JSON: { "schema": reference(schema) } } })
}

fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same as the member idempotency_key; if both are given, they must be equal.",
        "schema": { "type": "string", "minLength": 1, "maxLength": 64 },
    })
}

fn responses<const N: usize>(good: [(&str, Value); N], failures: &[&str]) -> Value {
    let mut all = Map::new();
    for (status, answer) in good {
        all.insert(status.to_owned(), answer);
    }
    for status in failures {
        all.insert((*status).to_owned(), failure(meaning(status)));
    }
    // With this entry, generated clients also know the form of statuses that a later version adds.
    all.insert("default".to_owned(), failure("Another failure."));
    all.into()
}

fn meaning(status: &str) -> &'static str {
    match status {
        "400" => "The request is not what this path takes.",
        "401" => "There is no valid token.",
        "403" => "The caller may not.",
        "404" => "There is no such operation, or none that the caller may know of.",
        "406" => "The request accepts no stream of events.",
        "409" => "The state does not allow it.",
        "413" => "The request or the answer is too long.",
        "415" => "The body is no JSON.",
        "422" => "The input does not match the operation's schema, or the operation refused.",
        "429" => "Too much at once.",
        "502" => "A server that the operation uses answered with an error or with a wrong answer.",
        "503" => "What is needed cannot be reached at present.",
        "504" => "The deadline passed.",
        _ => "The node failed.",
    }
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn closed(required: &[&str], properties: Value) -> Value {
    // Only schemas of requests are closed: responses may get more members in a minor version.
    let mut schema = object(required, properties);
    schema["additionalProperties"] = json!(false);
    schema
}

fn schemas() -> Value {
    let text = || json!({ "type": "string" });
    let call = json!({
        "operation": reference("OperationName"),
        "input": { "description": "The input of the operation; null if absent." },
        "timeout_ms": { "type": "integer", "minimum": 1, "maximum": TIMEOUT_MS_MAX },
        "idempotency_key": { "type": "string", "minLength": 1, "maxLength": 64 },
        "peer": {
            "type": "string",
            "description": "The peer that serves the call; if absent, any peer that serves the operation.",
        },
    });
    // A call of a batch is a call with an id for its result.
    let mut one = call.clone();
    one["id"] = json!({ "type": "string", "minLength": 1, "maxLength": 64 });
    json!({
        "OperationName": {
            "type": "string",
            "minLength": 3,
            "maxLength": 129,
            "examples": ["/node/info"],
        },
        "OperationType": { "type": "string", "enum": ["query", "mutation", "subscription"] },
        "CallRequest": closed(&["operation"], call),
        "CallResponse": object(&["request_id", "output"], json!({
            "request_id": text(),
            "output": {},
        })),
        "BatchRequest": closed(&["calls"], json!({
            "calls": {
                "type": "array",
                "maxItems": BATCH_MAX,
                "items": reference("BatchCall"),
            },
            "mode": reference("BatchMode"),
        })),
        "BatchMode": {
            "type": "string",
            "enum": ["parallel", "sequential", "stop_on_error"],
            "default": "parallel",
        },
        "BatchCall": closed(&["id", "operation"], one),
        "BatchResponse": object(&["results"], json!({
            "results": { "type": "array", "items": reference("BatchResult") },
        })),
        "BatchResult": {
            "anyOf": [reference("BatchSuccess"), reference("BatchFailure")],
        },
        "BatchSuccess": object(&["id", "status", "output"], json!({
            "id": text(),
            "status": { "type": "integer" },
            "output": {},
        })),
        "BatchFailure": object(&["id", "status", "error"], json!({
            "id": text(),
            "status": { "type": "integer" },
            "error": reference("Error"),
        })),
        "SearchResponse": object(&["operations", "next"], json!({
            "operations": { "type": "array", "items": reference("OperationSummary") },
            "next": { "type": ["string", "null"] },
        })),
        "OperationSummary": object(&["operation", "type", "summary", "namespace", "access"], json!({
            "operation": reference("OperationName"),
            "type": reference("OperationType"),
            "summary": text(),
            "namespace": text(),
            "access": { "type": "string", "enum": ["ok"] },
        })),
        "OperationSchema": object(
            &["operation", "type", "summary", "description", "input_schema", "output_schema", "errors", "examples"],
            json!({
                "operation": reference("OperationName"),
                "type": reference("OperationType"),
                "summary": text(),
                "description": text(),
                "input_schema": { "description": "JSON Schema 2020-12." },
                "output_schema": { "description": "JSON Schema 2020-12." },
                "errors": { "type": "array", "items": reference("OperationError") },
                "examples": { "type": "array", "items": {} },
            }),
        ),
        "OperationError": object(&["code", "http_status", "schema"], json!({
            "code": text(),
            "http_status": { "type": "integer", "minimum": 400, "maximum": 599 },
            "schema": { "description": "JSON Schema 2020-12 of the member details." },
        })),
        "Ticket": object(&["url", "expires_in"], json!({
            "url": text(),
            "expires_in": { "type": "integer", "description": "Seconds." },
        })),
        "ErrorResponse": object(&["error"], json!({ "error": reference("Error") })),
        "Error": object(&["code", "message", "retryable", "request_id"], json!({
            "code": { "type": "string", "description": "What to switch on." },
            "message": { "type": "string", "description": "For people." },
            "retryable": {
                "type": "boolean",
                "description": "Whether the same request may succeed later.",
            },
            "details": { "description": "Facts for programs, by code." },
            "request_id": text(),
        })),
        "EventStream": { "type": "string" },
        "HealthText": { "type": "string" },
        "MetricsText": { "type": "string" },
        "OpenApiDocument": { "type": "object", "additionalProperties": true },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn contract() -> Value {
        document(&OpenApiContract {
            operations_digest: "abc",
            is_public: false,
        })
    }

    /// Every `$ref` below `value`, and every schema without a name that has members.
    fn walk(value: &Value, references: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(to)) = members.get("$ref") {
                    references.insert(to.clone());
                }
                members.values().for_each(|one| walk(one, references));
            }
            Value::Array(list) => list.iter().for_each(|one| walk(one, references)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = contract();
        let mut references = BTreeSet::new();
        walk(&document, &mut references);
        for to in &references {
            let at = to.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(at).is_some(), "{to}");
        }
        let schemas = document["components"]["schemas"].as_object();
        for name in schemas.expect("schemas").keys() {
            let to = format!("#/components/schemas/{name}");
            assert!(references.contains(&to), "{name}");
        }
    }

    #[test]
    fn every_body_has_a_name() {
        let document = contract();
        let mut bodies = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            for operation in item.as_object().expect("methods").values() {
                let answers = operation["responses"].as_object().expect("responses");
                let mut contents: Vec<_> = answers.values().map(|one| &one["content"]).collect();
                contents.push(&operation["requestBody"]["content"]);
                for content in contents.into_iter().filter_map(Value::as_object) {
                    for described in content.values() {
                        assert!(described["schema"]["$ref"].is_string(), "{path}");
                        bodies += 1;
                    }
                }
                assert!(answers.contains_key("default"), "{path}");
            }
        }
        assert!(bodies > 40);
    }

    #[test]
    fn what_is_of_the_node_is_in_it() {
        let document = contract();
        assert_eq!(document["x-alknet-operations-digest"], "abc");
        assert_eq!(document["info"]["version"], CONTRACT_VERSION);
        let open = document["paths"]["/openapi.json"]["get"].get("security");
        assert_eq!(open, None);
        let public = super::document(&OpenApiContract {
            operations_digest: "",
            is_public: true,
        });
        assert_eq!(
            public["paths"]["/openapi.json"]["get"]["security"],
            json!([])
        );
    }
}
