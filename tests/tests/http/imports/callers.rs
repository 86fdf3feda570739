//! Callers of imported operations: peers and tokens with the scope, over every protocol, and their scripts.

use alknet_tests::{CliOutput, CliRunner, HostServer, RelayOperation, TestBench};
use serde_json::{Value, json};

use super::{HERE, ImportNode, openapi, request_count};

/// The scope of the operation that the tests call.
const SCOPE: &str = "import:api:getNote";

/// The input of the tests' calls, and its answer.
fn note() -> (Value, Value) {
    let answer = json!({ "id": 1, "text": "a", "lang": null });
    (json!({ "id": "a" }), answer)
}

/// A node that imports an API, and two of its peers.
struct ImportCallers {
    api: HostServer,
    node: ImportNode,
    /// A peer with the scope of one operation of the API.
    holder: CliRunner,
    /// A peer with the scope of another operation, and with further scopes that do not include the first operation.
    other: CliRunner,
}

impl ImportCallers {
    fn start() -> Self {
        let bench = TestBench::new();
        let api = HostServer::api(0, None);
        let [holder, other] = ["holder", "other"].map(|name| bench.user(name));
        let peer = |name: &str, who: &CliRunner, scopes: &[&str]| {
            let key = who.identity();
            format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
        };
        let config = [
            "[http.mcp]\ntools = [\"api/getNote\"]\n".to_owned(),
            openapi("api", api.port(), "cfg:/api.yaml", HERE),
            peer("holder", &holder, &[SCOPE, "runtime:debug"]),
            peer(
                "other",
                &other,
                &["import:api:me", "node:read", "runtime:debug"],
            ),
        ];
        let node = ImportNode::start(bench, &config.concat(), &["api/*"]);
        node.until_there("api/getNote");
        Self {
            api,
            node,
            holder,
            other,
        }
    }

    fn call(&self, who: &CliRunner, operation: &str, input: &Value) -> CliOutput {
        who.call(self.node.target(), operation, input, &[])
    }

    /// A token with only these scopes.
    fn token(&self, scopes: &[&str]) -> String {
        let made = self
            .node
            .web
            .node
            .call("token/make", &json!({ "scopes": scopes }));
        made["token"].as_str().expect("a token").to_owned()
    }

    /// The result of a script of this caller.
    fn eval(&self, who: &CliRunner, input: &Value) -> Value {
        self.call(who, "runtime/eval", input).json()["value"].take()
    }

    /// The tools that the node lists to an MCP client with this token.
    fn tools(&self, token: &str) -> String {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {} });
        let accept = "Accept: application/json, text/event-stream";
        let arguments = ["--header", accept, "--json", &body.to_string()];
        let told = self.node.web.curl_as(token, "/mcp", &arguments);
        assert_eq!(told.status, 200, "{told:?}");
        told.json()["result"]["tools"].to_string()
    }

    /// How often the API received a request for the note.
    fn asked(&self) -> usize {
        request_count(&self.api, "GET", "/api/notes/a")
    }
}

/// The names of the API's operations in a list. `member` is the member with the name.
fn names(list: &Value, member: &str) -> Vec<String> {
    let all = list.as_array().expect("a list").iter();
    let names = all.filter_map(|one| one[member].as_str());
    let names = names.map(|name| name.trim_start_matches('/').to_owned());
    names.filter(|name| name.starts_with("api/")).collect()
}

#[test]
fn who_holds_its_scope_calls_an_import_over_every_way() {
    let callers = ImportCallers::start();
    let (node, web) = (&callers.node, &callers.node.web);
    let ((input, note), token) = (note(), callers.token(&[SCOPE, "import:api:events"]));

    // The holder calls the operation by its key, with the command line.
    let answer = callers.call(&callers.holder, "api/getNote", &input);
    assert_eq!(answer.json(), note);
    let list = ["ops", "list", node.target()];
    let listed = callers.holder.run(callers.holder.command(&list)).json();
    assert_eq!(names(&listed, "name"), ["api/getNote"]);
    // A client calls the operation by a token over HTTP, alone and in a batch, and as a model over MCP.
    let answer = node.call(&token, "/api/getNote", &input).json();
    assert_eq!(answer["output"], note, "{answer:#}");
    let item =
        |id: &str, operation: &str| json!({ "id": id, "operation": operation, "input": input });
    let batch = json!({ "calls": [item("1", "/api/getNote"), item("2", "/api/addNote")] });
    let answer = web.post(&token, "/batch", &batch.to_string()).json();
    let [first, second] = [&answer["results"][0], &answer["results"][1]];
    assert_eq!((&first["status"], &first["output"]), (&json!(200), &note));
    assert_eq!(second["status"], 403, "{answer:#}");
    let answer = node.model(&token, "/api/getNote", &input).json();
    assert_eq!(answer["result"]["structuredContent"], note, "{answer:#}");
    let tools: Value = serde_json::from_str(&callers.tools(&token)).expect("a list");
    let mut tools = tools.as_array().expect("a list").iter();
    let tool = tools.find(|tool| tool["name"] == "api_getNote");
    let hints = &tool.expect("it is listed")["annotations"];
    // The API says that the operation only reads, for which the node does not vouch.
    let hints = (&hints["readOnlyHint"], &hints["openWorldHint"]);
    assert_eq!(hints, (&Value::Null, &json!(true)));
    let found = web.curl_as(&token, "/search?q=api/", &[]).json();
    let seen = names(&found["operations"], "operation");
    assert_eq!(seen, ["api/events", "api/getNote"]);
    let schema = web.curl_as(&token, "/schema?operation=/api/getNote", &[]);
    let words = schema.json()["description"].take();
    assert_eq!(words, "Of the server 'api', in its own words: One note.");
    let (accept, body) = (
        "Accept: text/event-stream",
        json!({ "operation": "/api/events" }).to_string(),
    );
    let arguments = ["--header", accept, "--json", &body];
    let events = web.curl_as(&token, "/subscribe", &arguments);
    assert_eq!(
        events.text().matches("\"event\":\"tick\"").count(),
        3,
        "{events:?}"
    );
    assert_eq!(callers.asked(), 4);
    // The node passes on the refusal of another server with that server's status, and reports no failure of its own.
    let missing = node.call(&token, "/api/getNote", &json!({ "id": "none" }));
    assert_eq!(missing.status, 404, "{missing:?}");
    let error = missing.json()["error"].take();
    assert_eq!(error["code"], "HTTP_404", "{error:#}");
    assert_eq!(error["details"]["body"]["message"], "no note none");
}

#[test]
fn who_lacks_its_scope_neither_calls_nor_sees_an_import() {
    let callers = ImportCallers::start();
    let (node, web) = (&callers.node, &callers.node.web);
    let (input, _) = note();
    let lacks = format!("the scope '{SCOPE}'");
    let token = callers.token(&["import:api:me", "import:api:getNot", "call:*", "node:read"]);

    let refused = callers.call(&callers.other, "api/getNote", &input);
    assert_eq!((refused.status, refused.code().as_str()), (4, "FORBIDDEN"));
    assert!(refused.errors.contains(&lacks), "{refused:?}");
    let list = ["ops", "list", node.target()];
    let listed = callers.other.run(callers.other.command(&list)).json();
    assert_eq!(names(&listed, "name"), ["api/me"]);
    let refused = node.call(&token, "/api/getNote", &input);
    assert_eq!(refused.status, 403, "{refused:?}");
    let error = refused.json()["error"].take();
    assert_eq!(
        error["details"]["missing_scopes"],
        json!([SCOPE]),
        "{error:#}"
    );
    let answer = node.model(&token, "/api/getNote", &input).json();
    assert_eq!(answer["result"]["isError"], true, "{answer:#}");
    assert!(answer.to_string().contains(SCOPE), "{answer:#}");
    assert!(!callers.tools(&token).contains("api_getNote"));
    let found = web.curl_as(&token, "/search?q=getNote", &[]).json();
    assert_eq!(found["operations"], json!([]));
    let schema = web.curl_as(&token, "/schema?operation=/api/getNote", &[]);
    assert_eq!(schema.status, 404, "{schema:?}");

    // An unknown caller gets the same answer for an import as for a name without an operation. Over HTTP the node
    // requires a token first.
    let unknown_peer = node.bench.user("unknown-peer");
    for operation in ["api/getNote", "api/absent"] {
        let refused = callers.call(&unknown_peer, operation, &input);
        assert_eq!(refused.code(), "NOT_FOUND", "{operation}: {refused:?}");
        let body = json!({ "operation": operation, "input": input }).to_string();
        let refused = web.curl("/call", &["--json", &body]);
        assert_eq!(refused.status, 401, "{operation}: {refused:?}");
    }
    assert_eq!(callers.asked(), 0, "no refused call reached the server");
}

#[test]
fn scripts_reach_an_import_where_their_caller_and_their_grants_allow() {
    let callers = ImportCallers::start();
    let (_, note) = note();
    let tried = "const tried = async (path) => {
        try { return await ops.call(path, { id: 'a' }) } catch ({ code, message }) { return { code, message } }
      };";
    let source = format!(
        "{tried} export default [ops.list('api/').map((one) => one.path),
             await tried('api/getNote'), await tried('api/me')]"
    );
    let script = |uses: Value| match uses.is_null() {
        true => json!({ "source": source }),
        false => json!({ "source": source, "uses": uses }),
    };
    let came = |who: &CliRunner, uses: Value| callers.eval(who, &script(uses));
    let forbids = |answer: &Value, scope: &str| {
        assert_eq!(answer["code"], "FORBIDDEN", "{answer}");
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(message.contains(&format!("'{scope}'")), "{message}");
    };
    // Without a list of its own, a script may call the operations that its caller may call.
    let told = came(&callers.holder, Value::Null);
    assert_eq!((&told[0], &told[1]), (&json!(["api/getNote"]), &note));
    forbids(&told[2], "import:api:me");
    // An operation in a script's list needs the caller's scope, and a scope needs the operation in the list.
    let told = came(&callers.holder, json!(["api/me"]));
    assert_eq!(
        (&told[0], &told[1]["code"]),
        (&json!([]), &json!("NOT_FOUND"))
    );
    forbids(&told[2], "import:api:me");
    let told = came(&callers.other, json!(["api/*"]));
    assert_eq!(told[0], json!(["api/me"]));
    forbids(&told[1], SCOPE);
    let told = came(&callers.holder, json!(["js/*"]));
    for answer in [&told[1], &told[2]] {
        assert_eq!(answer["code"], "NOT_FOUND", "{told}");
    }
    // A persistent session reaches the same operations.
    let line = |source: &str| json!({ "repl": "notes", "source": source });
    callers.eval(&callers.holder, &line("globalThis.id = 'a'"));
    let told = callers.eval(
        &callers.holder,
        &line("await ops.call('api/getNote', { id })"),
    );
    assert_eq!(told, note);
    assert_eq!(callers.asked(), 2);
}

/// The scopes of a caller neither extend nor reduce the rights of a promoted script.
#[test]
fn a_promoted_script_reaches_an_import_by_its_authors_scopes_alone() {
    let bench = TestBench::new();
    let api = HostServer::api(0, None);
    let relay = RelayOperation::with_scopes(&bench, &["api/*"], vec![SCOPE.to_owned()]);
    let imports = openapi("api", api.port(), "cfg:/api.yaml", HERE);
    let node = ImportNode::with_relay(bench, &imports, &relay);
    node.until_there("api/getNote");
    let (input, note) = note();
    assert_eq!(node.answer("api/getNote", &input), note);
    let error = node.error("api/me", &Value::Null);
    assert_eq!(error["code"], "FORBIDDEN", "{error:#}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("'import:api:me'"), "{message}");
    assert_eq!(request_count(&api, "GET", "/api/me"), 0);
    assert_eq!(node.list("api/"), json!(["api/getNote"]));

    let made = json!({ "scopes": ["call:js:relay"] });
    let made = node.web.node.call("token/make", &made);
    let token = made["token"].as_str().expect("a token");
    let path = format!("/{}", RelayOperation::PATH);
    let through = RelayOperation::input("api/getNote", &input);
    let answer = node.call(token, &path, &through).json();
    assert_eq!(answer["output"]["output"], note, "{answer:#}");
    assert_eq!(node.call(token, "/api/getNote", &input).status, 403);
}
