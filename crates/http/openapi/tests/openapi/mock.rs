//! Calls of real documents' operations, answered by a server that somebody else makes of the same document:
//! Prism of npm. What it does not understand as its document says it, it refuses.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use alknet_core::{CapabilityKind, Power, Secret, capability};
use alknet_openapi::{FromOpenApi, OpenApiOptions};
use serde_json::{Value, json};

use crate::common::{Node, dialer, folder, packed};
use crate::documents::{DIRECTORY, EXAMPLES, FIGMA};
use crate::secured::Secured;

/// A server for one document.
struct Prism {
    child: Child,
    address: SocketAddr,
}

impl Prism {
    fn start(package: &str, path: &str) -> Self {
        let tools = folder("ALKNET_TEST_OPENAPI_NODE");
        let program = tools.join("node_modules/@stoplight/prism-cli/dist/index.js");
        // Taken and given back: Prism takes no listener.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
        let address = free.expect("a port");
        let mut child = Command::new("node")
            .arg(program)
            .args(["mock", "--host", "127.0.0.1", "--port"])
            .arg(address.port().to_string())
            .arg(folder(package).join(path))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut said = String::new();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| {
            said.push_str(&line);
            said.push('\n');
            line.contains("is listening")
        });
        assert!(listens, "{path}: {said}");
        // Nobody may stop reading: it would wait.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let errors = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        std::thread::spawn(move || errors.map_while(Result::ok).for_each(drop));
        Self { child, address }
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A document, and calls with what their answers have to hold, or the code of their error.
struct Case {
    package: &'static str,
    path: &'static str,
    calls: Vec<(&'static str, Value, &'static str)>,
}

fn cases() -> Vec<Case> {
    let case = |package, path, calls| Case {
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

async fn call_all(case: &Case) -> Vec<String> {
    let (package, path) = (case.package, case.path);
    let started = tokio::task::spawn_blocking(move || Prism::start(package, path)).await;
    let prism = started.expect("no panic");
    let secured = Secured::before(prism.address).await;
    let (key, filler) = capability("key", CapabilityKind::Bearer, Arc::new(|| true));
    filler.fill(Power::Bearer(Secret::new(b"alknet-test".to_vec())));
    let mut options = OpenApiOptions::new("ns", &format!("https://{}", secured.address));
    options.credential = Some(key);
    options.private = vec!["127.0.0.1".parse().expect("a range")];
    options.pins = vec![secured.pin];
    let adapter = FromOpenApi::new(packed(package, path), options, dialer()).expect("an address");
    let node = Node::of(adapter.registrations().expect("a document"));
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
    let mut wrong = Vec::new();
    for case in cases() {
        wrong.extend(call_all(&case).await);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
