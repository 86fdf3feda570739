//! Scripts that attack the node and not their own limits. The values that they pass to the node must cost it little
//! memory, and the checks that they cause must cost it little time.

use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use alknet_test_support::{is_campaign, took};
use alknet_tests::{
    CliOutput, CliRunner, HostNode, RequestLoop, TestBench, eventually, whole_seconds,
};
use serde_json::{Map, Value, json};

use super::hoarders::{HOARDERS, hoarder};
use super::promoted_callers::{OperationDraft, configuration, promote};

/// Memory in bytes that one script, and all scripts together, may use in the node: docs/sessions.md.
const SESSION_BYTES: u64 = 8 << 20;
const ALL_BYTES: u64 = 64 << 20;
/// Growth in bytes that the test allows the rest of the node during an attack: connections, their frames, the
/// allocator's own memory. Beside other tests the allocator gives freed memory back later, so a run permits more.
const REST_BYTES: u64 = 24 << 20;
const REST_BYTES_BESIDE: u64 = 56 << 20;

/// Time within which the node must answer other callers during an attack.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// Sessions at the same time, each of a different identity.
const AT_ONCE: usize = 12;

pub(super) fn people(people: &[(String, CliRunner)], scopes: &[&str]) -> String {
    let peer = |(name, who): &(String, CliRunner)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    };
    people.iter().map(peer).collect()
}

fn crowd(bench: &TestBench) -> Vec<(String, CliRunner)> {
    let names = (0..AT_ONCE).map(|n| format!("author-{n}"));
    names
        .map(|name| (name.clone(), bench.user(&name)))
        .collect()
}

/// A value in bytes from the kernel's status of the node's process.
fn memory(node: &HostNode, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("the kernel says it") << 10
}

/// Bytes of values of scripts, by the node's own count: those that it has now, and the most at once so far.
fn script_bytes(node: &HostNode) -> [u64; 2] {
    let told = node.call("node/metrics", &Value::Null);
    [
        "alknet_script_memory_bytes",
        "alknet_script_memory_peak_bytes",
    ]
    .map(|name| {
        let bytes = told["values"][name].as_f64();
        bytes.unwrap_or_else(|| panic!("no {name}: {told:#}")) as u64
    })
}

/// Runs `work`, and returns the growth in bytes of the node's peak memory.
fn growth(node: &HostNode, work: impl FnOnce()) -> u64 {
    // This resets the peak, so that the next value is the peak during `work`.
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").expect("it is our process");
    let before = memory(node, "VmRSS:");
    work();
    memory(node, "VmHWM:").saturating_sub(before)
}

#[test]
fn values_of_scripts_cost_the_node_little_memory() {
    let bench = TestBench::new();
    let crowd = crowd(&bench);
    let node = bench.host_with(&people(&crowd, &["runtime:debug", "node:read"]));
    let evaluate = |who: &CliRunner, attack: &str| {
        let ran = who.call(node.target(), "runtime/eval", &hoarder(attack), &[]);
        let refused = ran.json()["value"].as_u64();
        assert!(refused.is_some_and(|times| times > 0), "{attack}: {ran:?}");
    };
    // The first scripts allocate what the node keeps for its lifetime: a worker, tables, threads.
    for (_, who) in &crowd {
        evaluate(who, "await tries(() => ops.call('node/info', NaN))");
    }
    let rest = match is_campaign() {
        true => REST_BYTES,
        false => REST_BYTES_BESIDE,
    };
    for (name, attack) in HOARDERS {
        let grown = growth(&node, || evaluate(&crowd[0].1, attack));
        println!("figure {name}: {} KiB", grown >> 10);
        assert!(grown < SESSION_BYTES + rest, "{name}: {grown} bytes");
        // By the node's own count no more than a session may have, and nothing is left of it.
        let [_, most] = script_bytes(&node);
        assert!(most <= SESSION_BYTES, "{name}: {most} bytes are counted");
        eventually("its values are given back", || {
            (script_bytes(&node)[0] == 0).then_some(())
        });
    }
    let [_, most] = script_bytes(&node);
    println!("figure counted for one: {} KiB", most >> 10);
    assert!(most > SESSION_BYTES / 2, "{most} bytes are counted");
    let grown = growth(&node, || {
        thread::scope(|scope| {
            for (at, (_, who)) in crowd.iter().enumerate() {
                let (_, attack) = HOARDERS[at % HOARDERS.len()];
                scope.spawn(move || evaluate(who, attack));
            }
        });
    });
    println!("figure {AT_ONCE} at once: {} KiB", grown >> 10);
    // The node frees refused values soon, so the growth stays far below the limit for all scripts. The test
    // `two_identities_that_keep_values_leave_the_scripts_of_others_room` reaches that limit.
    assert!(grown < ALL_BYTES + rest, "{grown} bytes");
    let [_, most] = script_bytes(&node);
    println!("figure counted for {AT_ONCE}: {} KiB", most >> 10);
    assert!(most <= ALL_BYTES, "{most} bytes are counted");
    // The node refuses a large result too, with an error code, and keeps running.
    let input = json!({ "source": "export default new Array(2e6)" });
    let answer = crowd[0].1.call(node.target(), "runtime/eval", &input, &[]);
    assert_eq!(answer.code(), "INVALID_OUTPUT");
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}

/// Sessions of each identity that keeps values.
const HOLDERS_EACH: usize = 4;
/// Time for which the sessions keep their values, in milliseconds.
const KEPT_MS: u64 = 250_000;

/// A script that fills its limit with the inputs of calls to a slow operation of its own.
fn holder_script() -> Value {
    let source = format!(
        "await ops.register({{ name: 'slow', kind: 'query' }}, () =>
             new Promise((done) => setTimeout(done, {KEPT_MS})));
         for (let bytes = 1 << 20; bytes >= 1 << 10; bytes >>= 1) {{
             for (;;) {{
                 const ends = () => true;
                 const call = ops.call('js/slow', 'x'.repeat(bytes), {{ timeoutMs: {KEPT_MS} }});
                 const kept = new Promise((done) => setTimeout(done, 300));
                 if (await Promise.race([call.then(ends, ends), kept])) break;
             }}
         }}
         await new Promise((done) => setTimeout(done, {KEPT_MS}));"
    );
    json!({ "source": source, "limits": {
        "wall_ms": KEPT_MS, "cpu_ms": 60_000, "fuel_ticks": 1_000_000,
    } })
}

/// Child processes that are killed when the test ends.
struct CommandGroup(Vec<Child>);

impl Drop for CommandGroup {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn two_identities_that_keep_values_leave_the_scripts_of_others_room() {
    let bench = TestBench::new();
    let names = ["eve", "mallory", "ada"];
    let three = names.map(|name| (name.to_owned(), bench.user(name)));
    let node = bench.host_with(&people(&three, &["runtime:debug"]));
    let [eve, mallory, (_, ada)] = &three;
    let mut holders = CommandGroup(Vec::new());
    let within = whole_seconds(Duration::from_millis(KEPT_MS));
    let keep = |who: &CliRunner| {
        let mut keeps = who.command(&["call", "--timeout", &within]);
        keeps.args([node.target(), "runtime/eval", &holder_script().to_string()]);
        let keeps = keeps.stdout(Stdio::null()).stderr(Stdio::null());
        keeps.spawn().expect("the binary can be started")
    };
    // Waits until scripts keep more than `least` bytes and the amount stops growing. Returns the amount in bytes.
    let kept = |least: u64| {
        let (mut before, mut since) = (0, Instant::now());
        eventually("they keep what they may", || {
            let [now, _] = script_bytes(&node);
            if now != before {
                (before, since) = (now, Instant::now());
            }
            (before > least && since.elapsed() > Duration::from_secs(4)).then_some(())
        });
        before
    };
    holders.0.push(keep(&eve.1));
    let one = kept(SESSION_BYTES / 3 * 2);
    println!("figure kept by one script: {} KiB", one >> 10);
    assert!(one <= SESSION_BYTES, "{one} bytes of one script");
    for (_, who) in [eve, mallory] {
        for _ in 0..HOLDERS_EACH {
            holders.0.push(keep(who));
        }
    }
    let two = kept(ALL_BYTES / 3 * 2);
    println!("figure kept by two: {} KiB", two >> 10);
    // Each identity gets only a small part of the last quarter. Without the limit for all scripts, the two
    // identities would keep all of it.
    assert!(two <= ALL_BYTES / 4 * 3 + (2 << 20), "{two} bytes of two");
    let source = "await ops.register({ name: 'length', kind: 'query' }, (text) => text.length);
         export default await ops.call('js/length', 'x'.repeat(1 << 16));";
    let input = json!({ "source": source });
    let ran = ada.call(node.target(), "runtime/eval", &input, &[]);
    assert_eq!(ran.json()["value"], 1 << 16);
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}

/// A token or peer that a script made would outlive the script, and would have the caller's rights instead of the
/// rights granted to the script.
#[test]
fn a_script_makes_no_token_and_admits_no_peer() {
    let bench = TestBench::new();
    let node = bench.host_with("[hub]\nenabled = true\n");
    let source = "const told = [];
         for (const [name, input] of [
             ['hub/invite', { role: 'worker' }],
             ['hub/peers/approve', { key: 'lusab-babad-gutih-tugad-bakuh-sojin', role: 'worker' }],
             ['hub/peers/remove', { peer: 'rev' }],
             ['hub/peers/label', { peer: 'rev', unset: ['role'] }],
             ['token/make', { scopes: [] }],
         ]) {
             try { await ops.call(name, input); told.push([name]); } catch (error) {
                 told.push([error.code, error.message.includes('call this directly')]);
             }
         }
         export default told";
    let ran = node.call("runtime/eval", &json!({ "source": source }));
    // No grant lets a script reach the operations for tokens.
    let mut all = vec![json!(["FORBIDDEN", true]); 4];
    all.push(json!(["NOT_FOUND", false]));
    assert_eq!(ran["value"], json!(all), "{ran}");
    let listed = node.call("hub/peers", &Value::Null);
    assert_eq!(listed["invitations"], json!([]), "{listed}");
}

/// Each answer of `tensor.open` has a descriptor, and a worker has few of them. The node stops the attacker's line
/// before the line reads any answer. Without modules, all REPLs run the same code, which is empty, and so share a
/// worker.
#[test]
fn lines_that_leave_their_answers_close_no_repl_of_others() {
    let bench = TestBench::new();
    let bob = bench.user("bob");
    let node = bench.host_with(&people(
        &[("bob".to_owned(), bob.clone())],
        &["runtime:debug"],
    ));
    let admin = bench.admin();
    let header = r#"{"m":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   "#;
    let length = (header.len() as u64).to_le_bytes();
    let file = bench.path().join("m.safetensors");
    fs::write(&file, [&length[..], header.as_bytes(), b"abc"].concat()).expect("writable");
    let mut push = admin.command(&["tensor", "push", node.target()]);
    push.arg(&file).arg("small/m");
    assert_eq!(admin.run(push).json()["path"], "small/m");
    let opens = "tensor.open({ path: 'small/m' })";
    // Without answers to `tensor.open` the lines below would be no attack: they do not look at what it answers.
    let opened = format!("(await Promise.all([{opens}, {opens}])).length");
    let opened = json!({ "repl": "first", "source": opened });
    assert_eq!(node.call("runtime/eval", &opened)["value"], 2);
    let source = format!("for (let i = 0; i < 64; i++) {opens}.catch(() => {{}}); for (;;);");
    for _ in 0..3 {
        let limits = json!({ "cpu_ms": 200, "fuel_ticks": 1_000_000 });
        let input = json!({ "repl": "a", "source": source, "limits": limits });
        let stopped = node.try_call("runtime/eval", &input);
        // The limit of processor time, and not a worker that was lost.
        assert_eq!(stopped.code(), "TIMEOUT", "{stopped:?}");
    }
    let line = json!({ "repl": "a", "source": "20 + 22" });
    let answer = bob.call(node.target(), "runtime/eval", &line, &[]);
    assert_eq!(answer.json()["value"], 42);
    assert_eq!(node.call("runtime/eval", &line)["value"], 42);
    assert_eq!(node.call("runtime/stats", &json!({}))["quarantined"], 0);
}

/// Limit for script lines of one owner in the log: twice what the log accepts in a minute (docs/observability.md),
/// because a new minute may begin during the test.
const LINES_IN_LOG_MAX: usize = 2 * 30;

/// The seed makes the script's clock virtual, so each of its seconds passes at once.
#[test]
fn empty_lines_of_a_script_leave_the_log_to_others() {
    let bench = TestBench::new();
    let node = bench.host();
    node.call(
        "runtime/eval",
        &json!({ "source": "console.error('was here before')" }),
    );
    let source = "for (let second = 0; second < 20; second++) {
             for (let i = 0; i < 2000; i++) console.error('');
             await new Promise((done) => setTimeout(done, 1000));
         }
         export default 'done'";
    let input = json!({ "source": source, "seed": "07".repeat(32), "limits": {
        "cpu_ms": 60_000, "fuel_ticks": 1_000_000,
    } });
    assert_eq!(node.call("runtime/eval", &input)["value"], json!("done"));
    let log = node.try_call("node/log", &json!({ "last": 10_000 })).output;
    assert!(log.contains("script: was here before"), "{log}");
    let lines = log.matches("script: ").count();
    println!("figure lines of scripts in the log: {lines}");
    assert!((2..=LINES_IN_LOG_MAX).contains(&lines), "{lines}");
}

/// The administrator calls an operation of another peer, and the operation asks the node to run a script. The node
/// does not run that script with the administrator's rights.
#[test]
fn a_promoted_operation_runs_nothing_as_its_caller() {
    let bench = TestBench::new();
    let [ada, rev] = ["ada", "rev"].map(|name| bench.user(name));
    let people: [(&str, &CliRunner, &[&str]); 2] = [
        ("ada", &ada, &["ops:propose", "runtime:debug"]),
        ("rev", &rev, &["ops:promote"]),
    ];
    let node = bench.host_with(&configuration("", &people));
    // A configuration in which the author is an administrator.
    let (administers, author) = (bench.admin().identity(), ada.identity());
    let document = format!("node.admin_keys = [\"{administers}\", \"{author}\"]\n");
    let input = json!({ "document": document });
    let applies = format!("await ops.call('config/apply', {input});");
    let (script, line) = (
        json!({ "source": applies }),
        json!({ "source": applies, "repl": "mine" }),
    );
    let source = format!(
        "export const run = async (go) => {{
             if (!go) return 'done';
             const told = [];
             for (const [name, input] of [
                 ['runtime/eval', {script}], ['runtime/eval', {line}], ['config/apply', {input}],
             ]) {{
                 try {{ await ops.call(name, input); told.push([name]); }} catch (error) {{
                     told.push([error.code, error.message.includes('call this directly')]);
                 }}
             }}
             return told;
         }};"
    );
    let draft = OperationDraft {
        uses: &["runtime/eval", "config/apply"],
        input: json!({ "type": "boolean" }),
        example: json!(false),
        source: &source,
        ..OperationDraft::waits("helpful")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    let told = node.call("js/helpful", &json!(true));
    // The author may not apply a configuration, and no caller of the operation changes that.
    let all = json!([
        ["FORBIDDEN", true],
        ["FORBIDDEN", true],
        ["FORBIDDEN", false]
    ]);
    assert_eq!(told, all);
    // A script that the administrator started may not change the configuration either, because the change would
    // outlive the script.
    let peer = json!({ "peer_id": "own", "keys": [author], "scopes": ["node:read"] });
    let source = format!(
        "const told = [];
         for (const [name, input] of [
             ['config/apply', {input}], ['peer/add', {peer}],
             ['peer/set', {{ peer: 'rev', enabled: false }}], ['peer/remove', {{ peer: 'rev' }}],
         ]) {{
             try {{ await ops.call(name, input); told.push([name]); }} catch (error) {{
                 told.push([error.code, error.message.includes('call this directly')]);
             }}
         }}
         export default told"
    );
    let ran = node.call("runtime/eval", &json!({ "source": source }));
    let all = vec![json!(["FORBIDDEN", true]); 4];
    assert_eq!(ran["value"], json!(all), "{ran}");
    let peers = node.call("peer/list", &Value::Null);
    let listed = peers["peers"].as_array().expect("a list").iter();
    let admins = listed.filter(|peer| peer["kind"] == "admin");
    let keys: Vec<_> = admins.map(|admin| &admin["keys"]).collect();
    assert_eq!(keys, [&json!([administers])], "{peers:#}");
}

/// One peer calls another peer's operation. The operation presents its author's token on the caller's connection.
#[test]
fn a_promoted_operation_does_not_authenticate_its_caller() {
    let bench = TestBench::new();
    let [ada, rev] = ["ada", "rev"].map(|name| bench.user(name));
    let people: [(&str, &CliRunner, &[&str]); 2] = [
        ("ada", &ada, &["ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
    ];
    let node = bench.host_with(&configuration("", &people));
    let made = node.call("token/make", &json!({ "scopes": ["node:read"] }));
    let token = made["token"].as_str().expect("a token");
    let source = format!(
        "export const run = async (go) => {{
             if (!go) return 'done';
             try {{ return await ops.call('session/authenticate', {{ token: '{token}' }}); }}
             catch (error) {{ return [error.code, error.message.includes('only the peer that made')]; }}
         }};"
    );
    let draft = OperationDraft {
        uses: &["session/authenticate"],
        input: json!({ "type": "boolean" }),
        example: json!(false),
        source: &source,
        ..OperationDraft::waits("helpful")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    let told = node.call("js/helpful", &json!(true));
    assert_eq!(told, json!(["FORBIDDEN", true]));
}

/// Bytes that a script is granted, and that it uses. A worker without a grant has less than the script uses.
const GRANTED: u64 = 768 << 20;
const USED: u64 = 512 << 20;

/// A script may use the memory that its caller grants. Its worker survives, and so does another script in the same
/// worker.
#[test]
fn a_script_uses_the_memory_that_it_was_granted() {
    let bench = TestBench::new();
    let node = bench.host();
    let uses = format!(
        "const all = [];
         for (let at = 0; at < {USED}; at += 1 << 24) all.push(new Uint8Array(1 << 24).fill(7));
         // Long enough for the node to look at what the worker holds.
         await new Promise((done) => setTimeout(done, 1000));
         export default all.length"
    );
    let uses =
        json!({ "source": uses, "limits": { "heap_bytes": GRANTED, "fuel_ticks": 1_000_000 } });
    let neighbour = "await new Promise((done) => setTimeout(done, 2000)); export default 'here'";
    let neighbour = json!({ "source": neighbour });
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| node.call("runtime/eval", &neighbour));
        assert_eq!(node.call("runtime/eval", &uses)["value"], USED >> 24);
        let neighbour = neighbour.join().expect("no panic");
        assert_eq!(neighbour["value"], "here", "{neighbour}");
    });
}

/// The code with which a script is refused, and a part of the message.
type ScriptRefusal = (&'static str, &'static str);

/// The limits that refuse a schema, whatever the value is, or the check of one value.
const TOO_LONG: ScriptRefusal = ("INVALID_INPUT", "takes more steps than a check may");
const TOO_WIDE: ScriptRefusal = ("INVALID_INPUT", "more values than a schema may");
const TOO_MUCH: ScriptRefusal = ("INVALID_INPUT", "schema takes more than 1000000 steps");
/// A call of an operation that was not registered.
const UNREGISTERED: ScriptRefusal = ("NOT_FOUND", "");

/// Schemas for which a validator would need more than a century, expressions for the values that cause it, and how the
/// script is refused: when it registers the schema, or when it makes the call that would evaluate the schema.
const BOMBS: [(&str, &str, &str, &[ScriptRefusal]); 5] = [
    (
        "a chain of forty, each twice the next",
        "const $defs = { d40: { type: 'string' } };
         for (let i = 0; i < 40; i++) {
             const next = { $ref: '#/$defs/d' + (i + 1) };
             $defs['d' + i] = { allOf: [next, next] };
         }
         const schema = { $ref: '#/$defs/d0', $defs };",
        "'x'",
        &[TOO_LONG, UNREGISTERED],
    ),
    (
        "a list of many numbers, each one of many",
        "const schema = { items: { enum: Array.from({ length: 9000 }, (_, i) => i + 0.5) } };",
        "new Array(40000).fill(7)",
        &[TOO_MUCH],
    ),
    (
        "a list of more numbers than a schema may have",
        "const schema = { items: { enum: Array.from({ length: 5e4 }, (_, i) => i + 0.5) } };",
        "new Array(4e4).fill(7)",
        &[TOO_WIDE, UNREGISTERED],
    ),
    (
        "a schema that refers to itself twice at each level",
        "const schema = { $ref: '#/$defs/a',
             $defs: { a: { items: { anyOf: [{ $ref: '#/$defs/a' }, { $ref: '#/$defs/a' }] } } } };",
        "(() => { let v = 1; for (let i = 0; i < 60; i++) v = [v]; return v; })()",
        &[TOO_MUCH],
    ),
    (
        "deep unevaluatedProperties",
        "let schema = { type: 'string' };
         for (let i = 0; i < 30; i++) schema = { unevaluatedProperties: schema };",
        "(() => { let v = 1; for (let i = 0; i < 30; i++) v = { v }; return v; })()",
        &[TOO_WIDE, UNREGISTERED],
    ),
];

#[test]
fn schemas_of_scripts_cost_the_node_little_time() {
    let bench = TestBench::new();
    let crowd = crowd(&bench);
    let node = bench.host_with(&people(&crowd, &["runtime:debug", "node:read"]));
    let asking = RequestLoop::begin(node.target(), bench.admin());
    // The scripts run at the same time, and would occupy every thread of the node.
    thread::scope(|scope| {
        for (at, (_, who)) in crowd.iter().enumerate() {
            let (name, schema, value, refusals) = BOMBS[at % BOMBS.len()];
            let source = format!(
                "{schema}
                 const told = [];
                 const tries = async (what) => {{
                     try {{ await what(); }} catch ({{ code, message }}) {{ told.push([code, message]); }}
                 }};
                 await tries(() => ops.register({{ name: 'a', kind: 'query', input: schema }}, () => 1));
                 await tries(() => ops.call('js/a', {value}));
                 export default told"
            );
            let node = &node;
            scope.spawn(move || {
                let input = json!({ "source": source });
                let ran = who.call(node.target(), "runtime/eval", &input, &[]).json();
                let told: Vec<(String, String)> =
                    serde_json::from_value(ran["value"].clone()).expect("pairs of texts");
                assert_eq!(told.len(), refusals.len(), "{name}: {told:?}");
                // A comparison with all values would also end in `INVALID_INPUT`: the message names the limit.
                for ((code, message), (wanted, limit)) in told.iter().zip(refusals) {
                    assert!(
                        code == wanted && message.contains(limit),
                        "{name}: {told:?}"
                    );
                }
            });
        }
    });
    let longest = asking.end();
    took("an answer beside hostile schemas", ANSWER_WITHIN, longest);
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}

/// A peer that may only propose can make the node evaluate a schema, because the node runs the tests of each
/// proposal.
#[test]
fn schemas_of_proposals_cost_the_node_little_time() {
    let bench = TestBench::new();
    let author = vec![("author".to_owned(), bench.user("author"))];
    let node = bench.host_with(&people(&author, &["ops:propose"]));
    let mut defs = json!({ "d40": { "type": "number" } });
    for at in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        defs[format!("d{at}")] = json!({ "allOf": [next, next] });
    }
    let chain = json!({ "$ref": "#/$defs/d0", "$defs": defs });
    let mut properties = Map::new();
    properties.insert(
        "x".repeat(20_000),
        json!({ "anyOf": vec![json!({}); 9_000] }),
    );
    let long_name = json!({ "properties": properties });
    let numbers: Vec<f64> = (0..9_000).map(|n| f64::from(n) + 0.5).collect();
    let numbers = json!({ "items": { "enum": numbers } });
    let unevaluated = (0..30).fold(
        json!({ "type": "number" }),
        |schema, _| json!({ "unevaluatedProperties": schema }),
    );
    let nested = "(() => { let v = 1; for (let i = 0; i < 30; i++) v = { v }; return v; })()";
    let asking = RequestLoop::begin(node.target(), bench.admin());
    let proposed = |n: usize, schema: &Value, answer: &str| {
        propose(&bench, &node, &author[0].1, (n, schema, answer))
    };
    assert_eq!(proposed(0, &json!({ "type": "number" }), "1").status, 0);
    // The node refuses each proposal for the cost of its schema, and not because its test has another answer.
    let bombs = [
        (chain, "1", "takes more steps than a check may"),
        (long_name, "1", "names are too long"),
        (numbers, "new Array(40000).fill(7)", "takes more than"),
        (unevaluated, nested, "more values than a schema may"),
    ];
    for (n, (schema, answer, reason)) in bombs.into_iter().enumerate() {
        let refused = proposed(n + 1, &schema, answer);
        assert_eq!(refused.code(), "TESTS_FAILED", "{refused:?}");
        assert!(refused.errors.contains(reason), "{reason}: {refused:?}");
    }
    let what = "an answer beside hostile schemas of proposals";
    took(what, ANSWER_WITHIN, asking.end());
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}

/// Proposes an operation whose test compares the answer with a schema.
pub(super) fn propose(
    bench: &TestBench,
    node: &HostNode,
    author: &CliRunner,
    (n, schema, answer): (usize, &Value, &str),
) -> CliOutput {
    let operation = json!({
        "spec": { "name": format!("bomb{n}"), "kind": "query" }, "entry": "./main.js", "export": "run",
        "tests": [{ "input": 1, "expect": { "schema": schema } }],
    });
    let folder = bench.path().join(format!("bomb{n}"));
    fs::create_dir_all(&folder).expect("the folder is ours");
    fs::write(folder.join("operation.json"), operation.to_string()).expect("room");
    let source = format!("export const run = () => {answer};");
    fs::write(folder.join("main.js"), source).expect("room");
    let mut command = author.command(&["ops", "propose", node.target(), "--as", "author"]);
    command.arg(&folder);
    author.run(command)
}
