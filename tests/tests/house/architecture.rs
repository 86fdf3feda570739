//! The invariants of docs/ARCHITECTURE.md, held against the workspace as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the workspace exists")
}

/// Every package of the resolved graph with what it needs at run time.
struct Graph {
    normal: BTreeMap<String, BTreeSet<String>>,
    members: BTreeSet<String>,
}

impl Graph {
    fn load() -> Self {
        let meta = metadata();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let packages = list(&meta["packages"]);
        let names: BTreeMap<String, String> = packages
            .iter()
            .map(|p| (text(&p["id"]), text(&p["name"])))
            .collect();
        let mut normal: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&meta["resolve"]["nodes"]) {
            let deps = list(&node["deps"]);
            let run_time = |d: &&Value| {
                list(&d["dep_kinds"])
                    .iter()
                    .any(|kind| kind["kind"].is_null())
            };
            let kept = deps
                .iter()
                .filter(run_time)
                .map(|d| names[&text(&d["pkg"])].clone());
            normal
                .entry(names[&text(&node["id"])].clone())
                .or_default()
                .extend(kept);
        }
        let members = list(&meta["workspace_members"]);
        let members = members.iter().map(|m| names[&text(m)].clone()).collect();
        Self { normal, members }
    }

    /// Everything `package` needs at run time, itself excluded.
    fn closure(&self, package: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![package.to_owned()];
        while let Some(next) = open.pop() {
            for dep in self.normal.get(&next).into_iter().flatten() {
                if seen.insert(dep.clone()) {
                    open.push(dep.clone());
                }
            }
        }
        seen
    }

    #[track_caller]
    fn forbid(&self, package: &str, banned: &[&str]) {
        let closure = self.closure(package);
        for name in banned {
            assert!(
                !closure.contains(*name),
                "{package} must not depend on {name}"
            );
        }
    }
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON")
}

/// Each links all of its package. `alknet-tests` has one for each system.
#[test]
fn a_package_has_one_program_of_integration_tests() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("a list");
    let members = metadata["workspace_members"].as_array().expect("a list");
    let members = packages.iter().filter(|it| members.contains(&it["id"]));
    let mut with_tests = 0;
    for package in members.filter(|it| it["name"] != "alknet-tests") {
        let targets = package["targets"].as_array().expect("a list");
        let programs = targets.iter().filter(|it| it["kind"][0] == "test");
        let programs: Vec<_> = programs.map(|it| &it["name"]).collect();
        assert!(programs.len() <= 1, "{}: {programs:?}", package["name"]);
        with_tests += programs.len();
    }
    assert!(with_tests > 20, "{with_tests}");
}

#[test]
fn core_knows_no_protocol_and_no_transport() {
    let banned = [
        "quinn",
        "rustls",
        "tokio-rustls",
        "alknet-tls",
        "alknet-endpoint",
        "alknet-call",
        "rusqlite",
    ];
    Graph::load().forbid("alknet-core", &banned);
}

#[test]
fn what_is_kept_knows_no_protocol_and_no_transport() {
    let banned = [
        "quinn",
        "rustls",
        "alknet-tls",
        "alknet-endpoint",
        "alknet-call",
    ];
    Graph::load().forbid("alknet-identity-store", &banned);
}

#[test]
fn call_reaches_the_network_only_through_core() {
    let banned = [
        "quinn",
        "rustls",
        "tokio-rustls",
        "alknet-tls",
        "alknet-endpoint",
        "hyper",
    ];
    Graph::load().forbid("alknet-call", &banned);
}

#[test]
fn http_reaches_the_network_only_through_core() {
    let graph = Graph::load();
    let banned = [
        "quinn",
        "rustls",
        "tokio-rustls",
        "alknet-tls",
        "alknet-endpoint",
        "alknet-vault",
        "h3-quinn",
        "reqwest",
    ];
    for part in [
        "alknet-http",
        "alknet-http-client",
        "alknet-gateway",
        "alknet-mcp",
        "alknet-openapi",
        "alknet-page",
    ] {
        graph.forbid(part, &banned);
    }
    // What shows and describes knows no server.
    for part in ["alknet-gateway", "alknet-openapi", "alknet-page"] {
        graph.forbid(part, &["axum"]);
    }
}

/// Only what serves HTTP, and what asks others by it, has a library for it; iroh's own copies are in the
/// endpoint.
#[test]
fn nobody_else_speaks_http() {
    let graph = Graph::load();
    for part in [
        "alknet-core",
        "alknet-call",
        "alknet-hub",
        "alknet-compute",
        "alknet-sessions",
        "alknet-tensor-serve",
        "alknet-identity-store",
    ] {
        graph.forbid(part, &["axum", "h3", "hyper", "rmcp", "alknet-gateway"]);
    }
}

#[test]
fn workers_know_no_script_no_shader_and_no_protocol() {
    let banned = [
        "rquickjs",
        "wgpu",
        "quinn",
        "rustls",
        "alknet-core",
        "alknet-call",
        "alknet-endpoint",
    ];
    Graph::load().forbid("alknet-worker", &banned);
}

#[test]
fn hub_reaches_the_network_only_through_core() {
    let banned = [
        "quinn",
        "rustls",
        "tokio-rustls",
        "alknet-tls",
        "alknet-endpoint",
        "alknet-call",
        "hyper",
    ];
    Graph::load().forbid("alknet-hub", &banned);
}

/// What keeps shares is given the vault as far as it needs it, and no more.
#[test]
fn escrow_knows_no_transport_and_no_vault() {
    let banned = [
        "quinn",
        "rustls",
        "alknet-tls",
        "alknet-endpoint",
        "alknet-vault",
        "hyper",
    ];
    Graph::load().forbid("alknet-escrow", &banned);
}

#[test]
fn typedef_is_pure() {
    let graph = Graph::load();
    graph.forbid("alknet-typedef", &["tokio", "reqwest", "rustls", "hyper"]);
    let ours: Vec<_> = graph.closure("alknet-typedef").into_iter().collect();
    let ours = ours.iter().filter(|name| graph.members.contains(*name));
    assert_eq!(ours.count(), 0);
}

#[test]
fn tensors_know_no_network_no_script_and_no_gpu() {
    let banned = [
        "alknet-core",
        "alknet-call",
        "alknet-endpoint",
        "quinn",
        "rquickjs",
        "rustls",
        "tokio",
        "wgpu",
    ];
    let graph = Graph::load();
    graph.forbid("alknet-tensor", &banned);
    graph.forbid("alknet-tensor-cli", &banned);
    let beyond_core = ["alknet-endpoint", "quinn", "rquickjs", "rustls", "wgpu"];
    graph.forbid("alknet-tensor-serve", &beyond_core);
    only_in(
        "a mapped tensor",
        &["Reader::map(", "Mapped::new("],
        &["tensor/src/", "tensor/tests/"],
    );
}

#[test]
fn operations_that_compute_have_no_driver_in_them() {
    let banned = [
        "alknet-endpoint",
        "alknet-vulkan",
        "matrixmultiply",
        "quinn",
        "rustls",
        "wgpu",
    ];
    Graph::load().forbid("alknet-compute", &banned);
}

#[test]
fn scripts_reach_nothing_but_their_host() {
    let banned = [
        "quinn",
        "rustls",
        "alknet-call",
        "alknet-core",
        "alknet-endpoint",
        "hyper",
        "rusqlite",
    ];
    Graph::load().forbid("alknet-runtime", &banned);
}

#[test]
fn sessions_know_no_transport_and_no_gpu() {
    let banned = [
        "quinn",
        "rustls",
        "alknet-endpoint",
        "alknet-tensor",
        "hyper",
        "rusqlite",
        "wgpu",
    ];
    Graph::load().forbid("alknet-sessions", &banned);
}

#[test]
fn promotion_starts_no_process_and_opens_no_connection() {
    let banned = [
        "quinn",
        "rustls",
        "alknet-endpoint",
        "alknet-tls",
        "alknet-worker",
        "hyper",
    ];
    Graph::load().forbid("alknet-promotion", &banned);
    // The parser of scripts is for workers.
    let folder = "crates/runtime/promotion/src/";
    let mut files = Vec::new();
    sources(&root().join(folder), &mut files);
    assert!(!files.is_empty(), "{folder} moved");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        for word in ["alknet_runtime::look", "Isolate::", ".look("] {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
    }
}

/// What else is beneath it, its own tests ask with all of its features.
#[test]
fn the_vault_is_alone() {
    let closure = Graph::load().closure("alknet-vault");
    let ours = closure.iter().filter(|name| name.starts_with("alknet"));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn what_seals_the_data_is_alone() {
    let graph = Graph::load();
    let closure = graph.closure("alknet-sealed");
    let ours = closure.iter().filter(|name| graph.members.contains(*name));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&String>::new());
    graph.forbid("alknet-sealed", &["tokio"]);
}

#[test]
fn pid_1_knows_no_protocol() {
    let graph = Graph::load();
    let packages = [
        "alknet-handover",
        "alknet-init",
        "alknet-init-net",
        "alknet-provision-cli",
        "alknet-provisioning",
        "alknet-sealed",
        "alknet-tpm",
    ];
    for package in packages {
        graph.forbid(
            package,
            &[
                "alknet-call",
                "alknet-endpoint",
                "alknet-tls",
                "quinn",
                "rustls",
            ],
        );
    }
}

/// Beneath it are the vault, whose slots it answers for, and libraries.
#[test]
fn the_tpm_knows_the_vault_and_nothing_else_of_ours() {
    let graph = Graph::load();
    let closure = graph.closure("alknet-tpm");
    let ours: Vec<_> = closure
        .iter()
        .filter(|name| name.starts_with("alknet"))
        .collect();
    assert_eq!(ours, ["alknet-vault"]);
    graph.forbid("alknet-tpm", &["tokio", "nix", "tpm2-protocol"]);
}

#[test]
fn only_the_appliance_and_the_tools_wire_parts_together() {
    let graph = Graph::load();
    let may = ["alknet", "alknet-bench", "alknet-tests"];
    for package in graph.members.iter().filter(|m| !may.contains(&m.as_str())) {
        let closure = graph.closure(package);
        let both = closure.contains("alknet-call") && closure.contains("alknet-endpoint");
        assert!(
            !both,
            "{package} wires protocols to the endpoint; only the appliance does that"
        );
    }
}

/// Asked of `cargo tree`: metadata also names libraries that a feature would only configure.
#[test]
fn one_crypto_provider_is_in_the_binary() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = Command::new(cargo)
        .args(["tree", "--locked", "--offline", "--package", "alknet"])
        .args(["--edges", "normal", "--prefix", "none"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&out.stdout);
    assert!(
        tree.contains("aws-lc-rs v"),
        "{tree}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for other in ["ring", "openssl", "openssl-sys", "native-tls"] {
        let listed = tree
            .lines()
            .any(|line| line.starts_with(&format!("{other} v")));
        assert!(!listed, "alknet must not depend on {other}");
    }
}

#[test]
fn the_binary_carries_no_build_tool() {
    Graph::load().forbid(
        "alknet",
        &[
            "alknet-bench",
            "alknet-image",
            "alknet-qemu",
            "alknet-tasks",
            "alknet-test-support",
            "indicatif",
            "tonic",
        ],
    );
}

#[test]
fn the_front_door_needs_nothing() {
    let closure = Graph::load().closure("xtask");
    assert!(
        closure.is_empty(),
        "xtask must compile from nothing in seconds: {closure:?}"
    );
}

/// Every Rust file below `dir`.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[track_caller]
fn only_in(what: &str, needles: &[&str], allowed: &[&str]) {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let short = file
            .strip_prefix(&root)
            .expect("below the root")
            .display()
            .to_string();
        if short == "tests/tests/house/architecture.rs"
            || allowed.iter().any(|a| short.starts_with(a))
        {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a readable file");
        for needle in needles {
            assert!(
                !text.contains(needle),
                "{short}: {what} ({needle}) does not belong here"
            );
        }
    }
}

#[test]
fn the_environment_is_read_only_at_the_edges() {
    // Secrets never travel in the environment; a library that cannot read it cannot be tempted.
    let edges = [
        "appliance/",
        "compute/gpu/src/worker.rs",
        "crates/bench/",
        "crates/tasks/",
        "crates/test-support/",
        "crates/xtask/",
        "image/",
        "qemu/",
        "tests/",
    ];
    let build_and_tests = [
        "crates/http/mcp/tests/",
        "crates/http/openapi/tests/",
        "crates/runtime/promotion/tests/",
        "crates/runtime/sessions/tests/",
        "crates/runtime/tests/",
        "crates/typedef/tests/",
        "crates/vault/cli/tests/",
        "crates/worker/tests/",
        "compute/driver/build.rs",
        "compute/gpu/build.rs",
        "compute/gpu/tests/",
        "init/build.rs",
        "init/net/tests/",
        "init/sealed/tests/",
        "init/tpm/tests/",
        "init/src/console/tests.rs",
        "provisioning/cli/tests/",
        "provisioning/handover/tests/",
        "provisioning/tests/",
        "tensor/tests/",
    ];
    only_in(
        "reading the environment",
        &["env::var"],
        &[&edges[..], &build_and_tests].concat(),
    );
}

#[test]
fn unsafe_code_talks_to_the_kernel_and_to_drivers_only() {
    // In crates/worker: starting a process, mapping sealed memory, other threads' clocks, signals;
    // and the probe of its tests, which does what no honest worker does. In crates/vault: the memory
    // that PID 1 and the node share the seed in, and the processor's registers. In appliance/src/memory.rs: the allocator.
    let kernel = [
        "init/",
        "qemu/",
        "appliance/src/memory.rs",
        "appliance/src/node/",
        "crates/bench/src/",
        "crates/tasks/src/",
        "crates/vault/src/area/sys.rs",
        "crates/vault/src/traces/registers.rs",
        "crates/worker/src/sys/",
        "crates/worker/tests/worker/probe/",
        // Without a library: it is compiled before anything else is.
        "crates/xtask/src/workspace.rs",
    ];
    // Mesa's drivers are C: their two entry points are called there, and generated code finds the C
    // library's functions there. What is measured beside our shaders asks for every feature.
    let drivers = ["compute/driver/src/", "compute/peer/src/"];
    // The kernels that multiply matrices take addresses. Bytes that the script engine and Rust both
    // see, and code that the engine wrote itself. Mapping a file asks something of whoever has
    // the file: that it stays as it is. What memory a header costs is measured by an allocator of
    // the tests.
    let memory = [
        "compute/gpu/src/host.rs",
        "compute/gpu/src/host/",
        "crates/runtime/src/globals/compiled.rs",
        "crates/runtime/src/isolate/bytes.rs",
        "crates/runtime/src/isolate/heap.rs",
        "crates/runtime/sessions/tests/sessions/hostile.rs",
        "tensor/src/reader.rs",
        "tensor/src/source/mapped.rs",
        "tensor/tests/tensor/files.rs",
        "tensor/tests/tensor/memory.rs",
    ];
    only_in(
        "unsafe code",
        &["unsafe {", "unsafe fn", "unsafe impl"],
        &[&kernel[..], &drivers, &memory].concat(),
    );
}

/// Another user may have made a folder whose name can be guessed, or a link in its place, and may replace the
/// programs that a test puts there and starts.
#[test]
fn temporary_folders_have_names_that_nobody_can_guess() {
    let made_with_care = ["crates/test-support/src/skip.rs", "qemu/src/scratch.rs"];
    only_in("a guessable name", &["temp_dir()"], &made_with_care);
    let named = [
        "(\"/tmp/",
        "!(\"/tmp/",
        "(\"/dev/shm/",
        "!(\"/dev/shm/",
        "(\"/var/tmp/",
        "!(\"/var/tmp/",
    ];
    only_in("a guessable name", &named, &[]);
}

#[test]
fn nothing_is_left_unfinished() {
    only_in(
        "an unfinished path",
        &["unimplemented!(", "todo!(", "#[ignore"],
        &[],
    );
}

/// Each test of a file: its first line, and the lines of its body.
fn tests_of(text: &str) -> Vec<(usize, Vec<&str>)> {
    let lines: Vec<&str> = text.lines().collect();
    // Those of `alone` are the bodies of tests that run in a process of their own.
    const MARKS: [&str; 3] = ["#[test]", "#[tokio::test", "#[tokio::main(flavor"];
    let is_mark = |line: &str| MARKS.iter().any(|mark| line.starts_with(mark));
    let marks = lines.iter().enumerate();
    let marks = marks.filter(|(_, line)| is_mark(line.trim_start()));
    marks
        .map(|(at, line)| {
            let indent = &line[..line.len() - line.trim_start().len()];
            let end = format!("{indent}}}");
            let body = lines[at..].iter().copied();
            (at + 1, body.take_while(|line| *line != end).collect())
        })
        .collect()
}

/// So many tests in these files start their program again, as a process that ends where the test's own part
/// begins.
const STARTED_AGAIN: [(&str, usize); 6] = [
    ("appliance/identity-store/tests/killed.rs", 1),
    ("crates/runtime/promotion/tests/promotion/killed.rs", 1),
    ("crates/runtime/sessions/tests/sessions/hostile.rs", 1),
    ("crates/tasks/src/group.rs", 3),
    ("crates/tasks/src/test/programs.rs", 1),
    ("crates/test-support/src/deadline.rs", 1),
];

/// So many tests in these files have a closure or a task that returns early. The test itself does not.
const RETURNED_FROM_WITHIN: [(&str, usize); 4] = [
    ("crates/call/tests/call/repeat.rs", 1),
    ("crates/runtime/sessions/tests/sessions/calls.rs", 1),
    ("tests/tests/node/identities/binary.rs", 1),
    ("tests/tests/node/identities/draining.rs", 1),
];

/// How often code has this keyword, beside what is in its texts and comments: many texts are scripts.
fn keywords(code: &str, keyword: &str) -> usize {
    let code = without_texts(code);
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| *word == keyword).count()
}

/// The code without comments and literals of strings and characters.
fn without_texts(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let text = text_at_start(rest, kept.chars().next_back());
        if text == 0 {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            rest = &rest[text..];
        }
    }
    kept
}

/// Bytes of the comment or literal that the code begins with, after the character `before`; 0 where it begins with
/// neither. One without an end ends with the code.
fn text_at_start(code: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| {
        let at = code[from..].find(end);
        at.map_or(code.len(), |at| from + at + end.len())
    };
    if code.starts_with("//") {
        // The end of the line still divides words.
        return code.find('\n').unwrap_or(code.len());
    }
    if code.starts_with("/*") {
        return until(2, "*/");
    }
    if code.starts_with('"') {
        let mut escaped = false;
        let end = code[1..].find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return end.map_or(code.len(), |end| end + 2);
    }
    // `r` as the end of a longer word begins no literal; those of `br` and `cr` do.
    let within_word = |c: char| (c.is_alphanumeric() || c == '_') && c != 'b' && c != 'c';
    if let Some(raw) = code.strip_prefix('r')
        && !before.is_some_and(within_word)
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return until(hashes + 2, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if let Some(character) = code.strip_prefix('\'') {
        let mut after = character.chars();
        match (after.next(), after.next()) {
            // The character after the backslash may be a quote itself.
            (Some('\\'), Some(escaped)) => return until(2 + escaped.len_utf8(), "'"),
            (Some(one), Some('\'')) => return one.len_utf8() + 2,
            // A lifetime.
            _ => {}
        }
    }
    0
}

#[test]
fn returns_are_found_however_they_are_written() {
    let early = [
        "return;",
        "return Ok(());",
        "if a { return }",
        "let Some(b) = a else { return };",
        "return helper();",
        "Err(_) => return,",
        "let a = '\"'; return; let b = '\"';",
        "let a = '\\''; return;",
        "fn f<'a>(a: &'a str) { return }",
        "let a = br\"\\\"; return;",
        "for a in b { return }",
    ];
    for code in early {
        assert_eq!(keywords(code, "return"), 1, "{code}");
    }
    let others = [
        "skip!(\"KVM\", \"none\");",
        "// return;",
        "/* return; */ a();",
        "let script = \"return 1; \\\" return 2\";",
        "let script = r#\"return \"1\"; return\"#;",
        "let script = \"first\n  return 1;\";",
        "let returned = returns();",
    ];
    for code in others {
        assert_eq!(keywords(code, "return"), 0, "{code}");
    }
}

/// A test that returns early passes without having run. `skip!` of `alknet-test-support` returns as well, and
/// the skip is counted.
#[test]
fn no_test_returns_early_without_a_named_skip() {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut tests = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        let all = tests_of(&text);
        tests += all.len();
        let is_early = |body: &[&str]| keywords(&body.join("\n"), "return") > 0;
        let early = all.iter().filter(|(_, body)| is_early(body));
        let early: Vec<usize> = early.map(|(line, _)| *line).collect();
        let mut known = STARTED_AGAIN.iter().chain(&RETURNED_FROM_WITHIN);
        let known = known.find(|(known, _)| file.ends_with(known));
        assert_eq!(
            early.len(),
            known.map_or(0, |(_, tests)| *tests),
            "{}, lines {early:?}: say with skip! what is lacking",
            file.display()
        );
    }
    assert!(tests > 2000, "{tests} tests were found");
}

/// The tables of docs/testing.md that say which test shows what.
fn acceptance_tables() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/testing.md")).expect("the page exists");
    let sections = page.split("\n## ").map(str::to_owned);
    let tables = sections.filter(|section| section.starts_with("Acceptance of "));
    tables.collect()
}

#[test]
fn tests_that_the_documentation_names_exist() {
    let root = root();
    let tables = acceptance_tables();
    assert!(tables.len() >= 3, "the page has the tables");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let read = |file: &PathBuf| std::fs::read_to_string(file).expect("a readable file");
    let code: String = files.iter().map(read).collect();
    for table in tables {
        let quoted = table.split('`').skip(1).step_by(2);
        let (files, others): (Vec<_>, Vec<_>) = quoted.partition(|word| word.contains('/'));
        let tests: Vec<_> = others.into_iter().filter(|word| is_test(word)).collect();
        assert!(tests.len() > 10, "{tests:?}");
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "no test {test}");
        }
        for file in files.iter().filter(|file| !file.contains("services/")) {
            assert!(root.join(file).exists(), "no file {file}");
        }
    }
}

/// Names of tests are sentences.
fn is_test(word: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.contains('_') && word.chars().all(letters)
}
