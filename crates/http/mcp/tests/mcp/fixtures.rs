//! The operations of the node, those of the conformance suite among them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use alknet_call::{
    CallBody, CallError, CallOutput, Ctx, Dispatcher, ErrorDef, HandlerKind, OperationSpec,
    Registration, Registry,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::node::McpRunCounter;

/// What the suite asks for, each a tool of its own.
pub(crate) const SUITE: [&str; 7] = [
    "test/simple_text",
    "test/image_content",
    "test/audio_content",
    "test/embedded_resource",
    "test/multiple_content_types",
    "test/error_handling",
    "json/schema_2020_12_tool",
];

/// One red pixel.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
/// No sound at all.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

pub(crate) fn registry() -> (Arc<Dispatcher>, watch::Receiver<usize>) {
    let (told, slow) = watch::channel(0);
    let builder = Registry::builder()
        .with(Registration::new(
            OperationSpec::query("demo/echo", "Answers with its input."),
            HandlerKind::once(|input, _| async move { Ok(CallOutput::from(input)) }),
        ))
        .with(Registration::new(add(), HandlerKind::once(sum)).checking_output())
        .with(constant(
            OperationSpec::query("demo/seven", "A number."),
            json!(7),
        ))
        .with(constant(
            OperationSpec::query("demo/secret", "For some only.").with_scope("secret:read"),
            json!({"hush": true}),
        ))
        .with(constant(
            OperationSpec::query("demo/inner", "For the node.").internal(),
            json!(1),
        ))
        .with(Registration::new(
            full(),
            HandlerKind::once(|_, _| async {
                Err::<Value, _>(CallError::operation("DISK_FULL", "no room for 7 bytes"))
            }),
        ))
        .with(Registration::new(
            OperationSpec::subscription("demo/ticks", "Again and again."),
            HandlerKind::stream(|_, _| futures_util::stream::pending::<Result<Value, CallError>>()),
        ))
        .with(slowly(told));
    let builder = suite()
        .into_iter()
        .fold(builder, alknet_call::RegistryBuilder::with);
    let registry = builder.build().expect("operations as they should be");
    (Arc::new(Dispatcher::new(registry)), slow)
}

fn constant(spec: OperationSpec, value: Value) -> Registration {
    let answer = move |_: CallBody, _: Ctx| {
        let value = value.clone();
        async move { Ok::<_, CallError>(value) }
    };
    Registration::new(spec, HandlerKind::once(answer))
}

fn add() -> OperationSpec {
    let number = json!({"type": "integer"});
    OperationSpec::query("demo/add", "Adds two numbers.")
        .with_input(json!({
            "type": "object",
            "properties": {"a": number, "b": number},
            "required": ["a", "b"],
            "additionalProperties": false,
        }))
        .with_output(json!({
            "type": "object",
            "properties": {"sum": number},
            "required": ["sum"],
        }))
}

async fn sum(input: CallBody, _: Ctx) -> Result<Value, CallError> {
    let value = input.value();
    let number = |name: &str| value[name].as_i64().unwrap_or_default();
    Ok(json!({"sum": number("a") + number("b")}))
}

fn full() -> OperationSpec {
    let mut spec = OperationSpec::mutation("demo/fill", "Never works.").with_scope("demo:write");
    spec.error_schemas.push(ErrorDef {
        code: "DISK_FULL".to_owned(),
        description: String::new(),
        schema: json!({}),
        http_status: Some(507),
    });
    spec
}

fn slowly(told: watch::Sender<usize>) -> Registration {
    let count = Arc::new(AtomicUsize::new(0));
    let spec = OperationSpec::query("demo/slow", "Takes for ever.");
    let handler = move |_: CallBody, _: Ctx| {
        let running = McpRunCounter::begin(&count, &told);
        async move {
            let () = std::future::pending().await;
            drop(running);
            Ok::<_, CallError>(json!(null))
        }
    };
    Registration::new(spec, HandlerKind::once(handler))
}

fn suite() -> Vec<Registration> {
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let resource = |uri: &str, kind: &str, text: &str| {
        let resource = json!({"uri": uri, "mimeType": kind, "text": text});
        json!({"type": "resource", "resource": resource})
    };
    let shows = |name: &str, blocks: Value| {
        let none = json!({"type": "object", "additionalProperties": false});
        let spec = OperationSpec::query(name, "Of the suite.")
            .with_input(none)
            .with_output(json!({"type": "object", "x-mcp-content": true}));
        constant(spec, json!({ "content": blocks }))
    };
    let sound = json!({"type": "audio", "data": WAV, "mimeType": "audio/wav"});
    let mixed = resource(
        "test://mixed-content-resource",
        "application/json",
        "{\"value\":123}",
    );
    let embedded = resource(
        "test://embedded-resource",
        "text/plain",
        "This is embedded.",
    );
    let simple = text("This is a simple text response for testing.");
    vec![
        shows(SUITE[0], json!([simple])),
        shows(SUITE[1], json!([image])),
        shows(SUITE[2], json!([sound])),
        shows(SUITE[3], json!([embedded])),
        shows(
            SUITE[4],
            json!([text("Multiple content types test:"), image, mixed]),
        ),
        failing(),
        constant(
            OperationSpec::query(SUITE[6], "Tool with JSON Schema 2020-12 features").with_input(
                json!({
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "type": "object",
                    "$defs": {
                        "address": {
                            "type": "object",
                            "properties": {
                                "street": {"type": "string"},
                                "city": {"type": "string"},
                            },
                        },
                    },
                    "properties": {
                        "name": {"type": "string"},
                        "address": {"$ref": "#/$defs/address"},
                    },
                    "additionalProperties": false,
                }),
            ),
            json!({}),
        ),
    ]
}

fn failing() -> Registration {
    let mut spec = OperationSpec::query(SUITE[5], "Of the suite.");
    spec.error_schemas.push(ErrorDef {
        code: "INTENDED".to_owned(),
        description: String::new(),
        schema: json!({}),
        http_status: None,
    });
    let fail = |_, _| async {
        let message = "This tool intentionally returns an error for testing";
        Err::<Value, _>(CallError::operation("INTENDED", message))
    };
    Registration::new(spec, HandlerKind::once(fail))
}
