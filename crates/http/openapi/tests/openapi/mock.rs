//! Calls of real documents' operations, answered by a server that another program makes of the same document: Prism
//! of npm. It refuses what it does not understand as its document says it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use alknet_core::{CapabilityBackend, CapabilityKind, Secret, capability};
use alknet_openapi::{FromOpenApi, OpenApiOptions};
use alknet_test_support::ReservedPort;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::common::{ImportTestNode, dialer, folder, only, packed};
use crate::documents::{DIRECTORY, EXAMPLES, FIGMA};
use crate::secured::TlsFrontend;

/// Starts a server of Prism for each port and document that are its arguments, with what its command line has by default.
const START: &str = "
    const { createSingleProcessPrism } = require(process.argv[1]);
    (async () => {
        for (let at = 2; at < process.argv.length; at += 2) {
            await createSingleProcessPrism({
                host: '127.0.0.1', port: Number(process.argv[at]), document: process.argv[at + 1],
                cors: true, dynamic: false, errors: false, ignoreExamples: false, multiprocess: false,
                seed: null, verboseLevel: 'info',
            });
        }
    })();
";

/// A server for each of some documents, in one program: to start it takes longer than to read most documents.
struct Prism {
    child: Child,
    addresses: Vec<SocketAddr>,
    _ports: Vec<ReservedPort>,
}

impl Prism {
    fn start(documents: &[NamedTempFile]) -> Self {
        let tools = folder("ALKNET_TEST_OPENAPI_NODE");
        let module = tools.join("node_modules/@stoplight/prism-cli/dist/util/createServer.js");
        let mut command = Command::new("node");
        command.args(["-e", START]).arg(module);
        let (mut ports, mut addresses) = (Vec::new(), Vec::new());
        for document in documents {
            let port = ReservedPort::claim().expect("a port");
            addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port.number())));
            command.arg(port.number().to_string()).arg(document.path());
            ports.push(port);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node runs");
        let errors = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let errors = std::thread::spawn(move || errors.map_while(Result::ok).collect::<Vec<_>>());
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut said = String::new();
        let mut listen = 0;
        while listen < documents.len() {
            let Some(Ok(line)) = lines.next() else {
                let _ = child.kill();
                let errors = errors.join().unwrap_or_default();
                panic!("{listen} of {}: {said}{errors:#?}", documents.len());
            };
            listen += usize::from(line.contains("is listening"));
            said.push_str(&line);
            said.push('\n');
        }
        // The output is read to its end: Prism would wait on a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self {
            child,
            addresses,
            _ports: ports,
        }
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A document, and calls with what their answers have to hold, or the code of their error.
struct MockCase {
    package: &'static str,
    path: &'static str,
    calls: Vec<(&'static str, Value, &'static str)>,
}

fn cases() -> Vec<MockCase> {
    let case = |package, path, calls| MockCase {
        package,
        path,
        calls,
    };
    vec![
        case(
            DIRECTORY,
            "api/github.com/api.github.com.json",
            vec![
                (
                    "ns/repos/get",
                    json!({"owner": "octocat", "repo": "hello world"}),
                    "/full_name",
                ),
                (
                    "ns/issues/create",
                    json!({"owner": "o", "repo": "r", "body": {"title": "broken", "labels": ["a"]}}),
                    "/title",
                ),
            ],
        ),
        // Not Stripe's: its schemas hold each other, and Prism unfolds them for minutes (stripe.rs).
        case(
            DIRECTORY,
            "api/kubernetes.io.json",
            vec![
                ("ns/getCodeVersion", Value::Null, "/gitVersion"),
                (
                    "ns/listCoreV1NamespacedPod",
                    json!({"namespace": "default", "limit": 5}),
                    "/items/0/metadata",
                ),
            ],
        ),
        case(
            DIRECTORY,
            "api/digitalocean.com.json",
            vec![
                ("ns/account_get", Value::Null, "/account/email"),
                (
                    "ns/tags_create",
                    json!({"body": {"name": "extra-awesome"}}),
                    "/tag/name",
                ),
            ],
        ),
        case(
            DIRECTORY,
            "api/gitea.io.json",
            vec![("ns/repoGet", json!({"owner": "o", "repo": "r"}), "/id")],
        ),
        case(
            FIGMA,
            "openapi/openapi.yaml",
            vec![("ns/getMe", Value::Null, "/id")],
        ),
        case(
            EXAMPLES,
            "3.0/yaml/petstore.yaml",
            vec![
                // Of these the document tells no other answer; what were wrong would be 422.
                (
                    "ns/addPet",
                    json!({"body": {"name": "doggie", "photoUrls": []}}),
                    "HTTP_405",
                ),
                (
                    "ns/findPetsByStatus",
                    json!({"status": ["available", "sold"]}),
                    "/0",
                ),
                (
                    "ns/updatePetWithForm",
                    json!({"petId": 7, "body": {"name": "a b", "status": "x&y"}}),
                    "HTTP_405",
                ),
                (
                    "ns/uploadFile",
                    json!({"petId": 7, "body": {"additionalMetadata": "m", "file": "aGVsbG8="}}),
                    "/code",
                ),
            ],
        ),
        case(
            EXAMPLES,
            "3.1/json/petstore.json",
            vec![("ns/findPetsByStatus", json!({"status": ["sold"]}), "/0")],
        ),
    ]
}

/// What a document says of some operations, which it names: their paths, and all that these refer to. Prism
/// unfolds and compiles every schema of a document before it serves one, which takes it a minute of a
/// processor for each of the largest.
fn about(document: &Value, operations: &[&str]) -> Value {
    let is_wanted = |item: &Value| {
        let mut methods = item.as_object().into_iter().flat_map(|item| item.values());
        methods.any(|method| {
            let id = method["operationId"].as_str();
            id.is_some_and(|id| operations.contains(&id))
        })
    };
    let paths = document["paths"].as_object().expect("paths");
    let wanted = paths.iter().filter(|(_, item)| is_wanted(item));
    let wanted = wanted.map(|(path, _)| format!("/paths/{}", escaped(path)));
    let mut kept = BTreeSet::new();
    let mut left: Vec<String> = wanted.collect();
    // Their parts are said by name in place of a reference.
    left.extend(["/components/securitySchemes", "/securityDefinitions"].map(str::to_owned));
    while let Some(pointer) = left.pop() {
        let Some(part) = document.pointer(&pointer) else {
            continue;
        };
        if kept.insert(pointer) {
            references(part, &mut left);
        }
    }
    let mut part = document.clone();
    // Requests that their server makes, and what no specification knows, refer to other parts.
    if let Some(fields) = part.as_object_mut() {
        fields.retain(|name, _| !name.starts_with("x-") && name != "webhooks");
    }
    for table in ["paths", "definitions", "parameters", "responses"] {
        retain(&mut part, &format!("/{table}"), &kept);
    }
    let kinds = part["components"].as_object().into_iter();
    let kinds: Vec<String> = kinds.flat_map(|kinds| kinds.keys().cloned()).collect();
    for kind in kinds.iter().filter(|kind| *kind != "securitySchemes") {
        retain(&mut part, &format!("/components/{kind}"), &kept);
    }
    part
}

/// Keeps the entries of the table at `pointer` that are kept, or something in them.
fn retain(document: &mut Value, pointer: &str, kept: &BTreeSet<String>) {
    let Some(Value::Object(table)) = document.pointer_mut(pointer) else {
        return;
    };
    table.retain(|name, _| {
        let entry = format!("{pointer}/{}", escaped(name));
        kept.iter().any(|kept| {
            let below = kept.strip_prefix(&entry);
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        })
    });
}

/// What a part of a document refers to, as pointers.
fn references(part: &Value, found: &mut Vec<String>) {
    match part {
        Value::Object(fields) => {
            let text = fields.get("$ref").and_then(Value::as_str);
            found.extend(text.and_then(|text| text.strip_prefix('#')).map(unquoted));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// A name as it stands in a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The pointer in the fragment of a URI.
fn unquoted(fragment: &str) -> String {
    percent_encoding::percent_decode_str(fragment)
        .decode_utf8_lossy()
        .into_owned()
}

#[test]
fn a_part_of_a_document_has_all_it_refers_to() {
    let document = json!({
        "openapi": "3.0.0",
        "x-webhooks": { "e": { "$ref": "#/components/schemas/E" } },
        "paths": {
            "/a/{b}": { "get": { "operationId": "a/get", "x": { "$ref": "#/components/schemas/A%20B" } } },
            "/c": { "get": { "operationId": "c" } },
        },
        "components": {
            "schemas": { "A B": { "items": [{ "$ref": "#/components/schemas/D" }] }, "D": {}, "E": {} },
            "securitySchemes": { "token": {} },
        },
    });
    let expected = json!({
        "openapi": "3.0.0",
        "paths": { "/a/{b}": document["paths"]["/a/{b}"] },
        "components": {
            "schemas": { "A B": document["components"]["schemas"]["A B"], "D": {} },
            "securitySchemes": { "token": {} },
        },
    });
    assert_eq!(about(&document, &["a/get"]), expected);
}

/// A file with what Prism has to know of the operations that a case calls.
fn for_prism(case: &MockCase) -> NamedTempFile {
    let text = packed(case.package, case.path);
    // YAML whose aliases and words of its own Prism would have to read is small, and stays as it is.
    let small = text.len() < 64 << 10;
    let document: Option<Value> = if case.path.ends_with(".json") {
        Some(serde_json::from_slice(&text).expect("JSON"))
    } else if small {
        None
    } else {
        let text = std::str::from_utf8(&text).expect("UTF-8");
        Some(serde_saphyr::from_str(text).expect("YAML"))
    };
    let (ending, text) = match document {
        Some(document) => {
            let names = case.calls.iter().map(|(operation, ..)| *operation);
            let names: Vec<&str> = names.filter_map(|name| name.strip_prefix("ns/")).collect();
            let part = about(&document, &names);
            (".json", part.to_string().into_bytes())
        }
        None => (".yaml", text.to_vec()),
    };
    let file = tempfile::Builder::new().suffix(ending).tempfile();
    let file = file.expect("a temporary file");
    std::fs::write(file.path(), text).expect("writable");
    file
}

async fn call_all(case: &MockCase, server: SocketAddr) -> Vec<String> {
    let (package, path) = (case.package, case.path);
    let secured = TlsFrontend::before(server).await;
    let (key, filler) = capability("key", CapabilityKind::Bearer, Arc::new(|| true));
    filler.fill(CapabilityBackend::Bearer(Secret::new(
        b"alknet-test".to_vec(),
    )));
    let mut options = OpenApiOptions::new("ns", &format!("https://{}", secured.address));
    options.credential = Some(key);
    options.private = vec!["127.0.0.1".parse().expect("a range")];
    options.pins = vec![secured.pin];
    let adapter = FromOpenApi::new(packed(package, path), options, dialer()).expect("an address");
    let names: Vec<&str> = case
        .calls
        .iter()
        .map(|(operation, ..)| *operation)
        .collect();
    let node = ImportTestNode::with_registrations(only(
        adapter.registrations().expect("a document"),
        &names,
    ));
    let mut wrong = Vec::new();
    for (operation, input, holds) in &case.calls {
        match node.call(operation, input.clone()).await {
            Ok(answer) if answer.pointer(holds).is_some() => {}
            Ok(answer) => wrong.push(format!("{path} {operation}: no {holds} in {answer:.300}")),
            Err(error) if error.code.name() == *holds => {}
            Err(error) => wrong.push(format!("{path} {operation}: {error} {:?}", error.details)),
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_partys_server_understands_what_is_asked() {
    let cases = cases();
    let documents: Vec<_> = cases.iter().map(for_prism).collect();
    let started = tokio::task::spawn_blocking(move || Prism::start(&documents)).await;
    let prism = started.expect("no panic");
    let mut wrong = Vec::new();
    for (case, server) in cases.iter().zip(&prism.addresses) {
        wrong.extend(call_all(case, *server).await);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
