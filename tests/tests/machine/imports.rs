//! Servers that require a secret: a booted machine keeps it sealed, and shows it only to them.

use std::fs;
use std::time::Duration;

use alknet_tests::{
    BootVariant, HostServer, MachineNode, RelayOperation, TestBench, WebNode, curl, eventually,
};
use serde_json::{Value, json};

/// Time from a lock until the console asks.
const ASKED_WITHIN: Duration = Duration::from_secs(30);

/// One secret for each server, which no other server may see.
const SECRETS: [&str; 2] = [
    "hush-2b6e-for-the-api-alone",
    "hush-94fa-for-the-tools-alone",
];

fn document(api: &HostServer, tools: &HostServer) -> String {
    let [first, second] = SECRETS;
    // This host's servers, as a machine on QEMU's network sees them.
    let place = |kind: &str, namespace: &str, more: &str| {
        format!(
            "[[credentials]]\nname = \"{namespace}\"\nkind = \"bearer\"\n\
             [[http.import]]\nkind = \"{kind}\"\nnamespace = \"{namespace}\"\nplain = true\n\
             private = [\"10.0.2.2\"]\ncredential = \"{namespace}\"\n{more}\n"
        )
    };
    let at = format!("http://10.0.2.2:{}", api.port());
    let of_api = format!("document = \"{at}/api.yaml\"\nbase_url = \"{at}/api\"");
    let of_tools = format!("url = \"http://10.0.2.2:{}/mcp\"", tools.port());
    [
        format!("[secrets.credentials]\napi = \"{first}\"\ntools = \"{second}\"\n"),
        place("openapi", "api", &of_api),
        place("mcp", "tools", &of_tools),
    ]
    .concat()
}

/// The `Authorization` headers of all requests that the API received at a path.
fn shown(api: &HostServer, path: &str) -> Vec<Value> {
    let all = curl(&api.url("/told"), &[]).json();
    let all = all.as_array().expect("a list").iter();
    let all = all.filter(|one| one["path"] == path);
    all.map(|one| one["authorization"].clone()).collect()
}

/// The operations of a machine that use imported ones.
struct ImportMachine<'a> {
    bench: &'a TestBench,
    node: &'a MachineNode,
}

impl ImportMachine<'_> {
    fn ask(&self, operation: &str, input: &Value) -> Value {
        RelayOperation::ask(self.bench.admin(), &self.node.target(), operation, input)
    }

    fn until_there(&self, operation: &str) {
        eventually(operation, || {
            let listed = RelayOperation::list(self.bench.admin(), &self.node.target(), operation);
            (listed == json!([operation])).then_some(())
        });
    }
}

#[test]
fn secrets_of_imports_are_sent_to_their_own_servers_only() {
    let bench = TestBench::set_up();
    let files = ["api", "tools"].map(|name| bench.path().join(name));
    for (file, secret) in files.iter().zip(SECRETS) {
        fs::write(file, secret).expect("the folder is ours");
    }
    let [api, tools] = files.each_ref().map(|file| file.to_str());
    let (api, tools) = (HostServer::api(0, api), HostServer::mcp(0, tools));
    let relay = RelayOperation::new(&bench, &["api/*", "tools/*"]);
    let config = format!("{}{}", relay.configuration(), document(&api, &tools));
    let web = WebNode::boot(bench.machine(BootVariant::MicrovmErofs), &config);
    let node = &web.node;
    relay.promote(&node.target());
    let importer = ImportMachine {
        bench: &bench,
        node,
    };
    importer.until_there("api/me");
    importer.until_there("tools/add");

    // Both get their secrets. Where the API requires none, the node sends none.
    let bearer = json!(format!("Bearer {}", SECRETS[0]));
    let sum = json!({ "a": 2, "b": 3 });
    let me = importer.ask("api/me", &Value::Null);
    assert_eq!(me["output"], json!({ "me": true }), "{me:#}");
    let added = importer.ask("tools/add", &sum);
    assert_eq!(added["output"], json!({ "sum": 5 }), "{added:#}");
    let missing = importer.ask("api/getNote", &json!({ "id": "none" }));
    assert_eq!(missing["error"]["code"], "HTTP_404", "{missing:#}");
    assert_eq!(shown(&api, "/api/me"), std::slice::from_ref(&bearer));
    assert_eq!(shown(&api, "/api/notes/none"), [Value::Null]);
    assert_eq!(shown(&api, "/api.yaml"), [bearer]);
    // The node follows no redirect.
    let away = importer.ask("api/away", &Value::Null);
    assert_eq!(away["error"]["code"], "UNAVAILABLE", "{away:#}");

    // While the vault is locked the node has no secret to show, and sends the servers no request.
    let locked = node.call("vault/lock", &Value::Null);
    assert_eq!(locked, json!({ "state": "locked" }));
    let refused = [
        importer.ask("api/me", &Value::Null),
        importer.ask("tools/add", &sum),
    ];
    for one in &refused {
        assert_eq!(one["error"]["code"], "UNAVAILABLE", "{one:#}");
    }
    assert_eq!(shown(&api, "/api/me").len(), 1);
    let asked = "alknet: asks: passphrase of the vault";
    let waited = node.vm().wait_for(asked, ASKED_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    let console = node.vm().console();
    console.send("\r").expect("the console takes it");
    eventually("the secrets are there again", || {
        let me = importer.ask("api/me", &Value::Null);
        me["error"].is_null().then_some(())
    });
    eventually("the tools have theirs again", || {
        (importer.ask("tools/add", &sum) == added).then_some(())
    });
    assert_eq!(importer.ask("tools/add", &sum), added);

    let log = node.try_call("node/log", &json!({ "last": 100_000 }), &[]);
    let search = web.curl_as(&web.admin, "/search?limit=500", &[]);
    let metrics = web.curl_as(&web.admin, "/metrics", &[]);
    let said = [
        ("the log", log.output + &log.errors),
        ("the console", node.vm().console().text()),
        ("the node's account", node.info().to_string()),
        (
            "the vault's",
            node.call("vault/status", &Value::Null).to_string(),
        ),
        ("the list of operations", search.text()),
        ("the metrics", metrics.text()),
        (
            "an answer",
            json!([me, added, missing, away, refused]).to_string(),
        ),
    ];
    for (what, said) in said {
        assert!(
            SECRETS.iter().all(|one| !said.contains(one)),
            "{what} has a secret"
        );
    }
    web.node.end();
    let disk = alknet_qemu::content(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    for secret in SECRETS {
        let found = memchr::memmem::find(&disk, secret.as_bytes());
        assert!(found.is_none(), "the disk has a secret");
    }
}
