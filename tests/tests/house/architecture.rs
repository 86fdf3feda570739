//! Compares the invariants of docs/ARCHITECTURE.md about dependencies between packages with the
//! workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

use super::tree::{only_in, root, sources};

/// Every package of the resolved graph with what it needs at run time.
pub(super) struct PackageGraph {
    normal: BTreeMap<String, BTreeSet<String>>,
    pub(super) members: BTreeSet<String>,
}

impl PackageGraph {
    /// The graph of the workspace, which all tests share.
    pub(super) fn load() -> &'static Self {
        static GRAPH: LazyLock<PackageGraph> =
            LazyLock::new(|| PackageGraph::from_metadata(metadata()));
        &GRAPH
    }

    fn from_metadata(meta: &Value) -> Self {
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

    /// Everything that `package` needs at run time, without itself.
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

/// Cargo's metadata of the workspace. It is read once, because cargo reads every manifest for it,
/// which takes most of a second.
fn metadata() -> &'static Value {
    static METADATA: LazyLock<Value> = LazyLock::new(|| {
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
    });
    &METADATA
}

/// Each program links its whole package. `alknet-tests` has one for each system.
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
    PackageGraph::load().forbid("alknet-core", &banned);
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
    PackageGraph::load().forbid("alknet-identity-store", &banned);
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
    PackageGraph::load().forbid("alknet-call", &banned);
}

#[test]
fn http_reaches_the_network_only_through_core() {
    let graph = PackageGraph::load();
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
    // Code that shows and describes uses no server.
    for part in ["alknet-gateway", "alknet-openapi", "alknet-page"] {
        graph.forbid(part, &["axum"]);
    }
}

/// Only packages that serve HTTP, or are HTTP clients, have a library for it. iroh's own copies are
/// in the endpoint.
#[test]
fn only_the_http_parts_depend_on_http_libraries() {
    let graph = PackageGraph::load();
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
    PackageGraph::load().forbid("alknet-worker", &banned);
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
    PackageGraph::load().forbid("alknet-hub", &banned);
}

/// Code that keeps shares gets only as much of the vault as it needs.
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
    PackageGraph::load().forbid("alknet-escrow", &banned);
}

#[test]
fn typedef_is_pure() {
    let graph = PackageGraph::load();
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
    let graph = PackageGraph::load();
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
    PackageGraph::load().forbid("alknet-compute", &banned);
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
    PackageGraph::load().forbid("alknet-runtime", &banned);
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
    PackageGraph::load().forbid("alknet-sessions", &banned);
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
    PackageGraph::load().forbid("alknet-promotion", &banned);
}

/// The parser of scripts is linked into the node, whose program its workers run too. So the sources
/// are checked for its use.
#[test]
fn the_node_parses_no_script() {
    // Probes for other nodes, without anything of the runtime.
    let looks = "appliance/src/node/self_probe";
    let node = [
        "appliance/src/node/",
        "crates/runtime/promotion/src/",
        "crates/runtime/sessions/src/host/",
        "crates/runtime/sessions/src/ops",
        "crates/runtime/sessions/src/wire",
    ];
    for part in node {
        let mut seen = 0;
        for file in sources().iter().filter(|it| it.path.starts_with(part)) {
            let found = match file.path.starts_with(looks) {
                true => parser_by_name(&file.text),
                false => parser_of_scripts(&file.text),
            };
            assert!(found.is_none(), "{}: {found:?}", file.path);
            seen += 1;
        }
        assert!(seen > 1, "{part} moved");
    }
}

/// Another user of the engine would not need the runtime's parser.
#[test]
fn only_the_runtime_has_the_engine_of_scripts() {
    let graph = PackageGraph::load();
    let engine = ["rquickjs", "rquickjs-core", "rquickjs-sys"];
    let has = |package: &&String| engine.iter().any(|it| graph.normal[*package].contains(*it));
    let with: Vec<_> = graph.members.iter().filter(has).collect();
    // The benchmark compares with the engine alone.
    assert_eq!(with, ["alknet-bench", "alknet-runtime"]);
}

/// The parser or engine of scripts that a source uses: imports from the runtime, and methods of a
/// set of modules.
fn parser_of_scripts(source: &str) -> Option<&str> {
    let methods = [
        ".scan_all(",
        ".source(",
        "ModuleSet::scan_all",
        "ModuleSet::source",
    ];
    parser_by_name(source).or_else(|| methods.into_iter().find(|it| source.contains(*it)))
}

/// The same for imports only.
fn parser_by_name(source: &str) -> Option<&str> {
    fn is_part(c: char) -> bool {
        c.is_ascii_alphanumeric() || c == '_'
    }
    let name = "alknet_runtime";
    let mut taken = source.match_indices(name).flat_map(|(at, _)| {
        let rest = &source[at + name.len()..];
        let end = match rest.starts_with("::{") {
            true => rest.find(';'),
            false => rest.find(|c: char| !is_part(c) && c != ':' && c != '*'),
        };
        // An import of everything, under whichever name, may use anything.
        let whole = rest.starts_with(" as ").then_some(name);
        let words = rest[..end.unwrap_or(rest.len())].split(|c: char| !is_part(c) && c != '*');
        words.chain(whole)
    });
    let banned = ["scan_source", "Isolate", "self", "*", name];
    taken.find(|word| banned.contains(word))
}

#[test]
fn a_parser_of_scripts_is_found_however_it_is_imported() {
    for source in [
        "use alknet_runtime::{ModuleSet, scan_source};",
        "use alknet_runtime::{\n    Spec, ops::{Case, tells},\n    scan_source as see,\n};",
        "let seen = alknet_runtime::scan_source(name, text, language);",
        "use alknet_runtime::*;",
        "use alknet_runtime as runtime;",
        "use alknet_runtime::{self as runtime};",
        "alknet_runtime::Isolate::open(spec, host)",
        "modules.scan_all().collect()",
        "ModuleSet::source(&modules, name)",
    ] {
        assert!(parser_of_scripts(source).is_some(), "{source}");
    }
    let harmless = "use alknet_runtime::{Looked, Work};\n/// [`Look`](alknet_runtime::Work::Look)\n\
                    let seen = trial::scan_sources(runner, bundle).await?;";
    assert_eq!(parser_of_scripts(harmless), None);
}

/// The vault's own tests use its other dependencies with all features.
#[test]
fn the_vault_is_alone() {
    let closure = PackageGraph::load().closure("alknet-vault");
    let ours = closure.iter().filter(|name| name.starts_with("alknet"));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn what_seals_the_data_is_alone() {
    let graph = PackageGraph::load();
    let closure = graph.closure("alknet-sealed");
    let ours = closure.iter().filter(|name| graph.members.contains(*name));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&String>::new());
    graph.forbid("alknet-sealed", &["tokio"]);
}

#[test]
fn what_reads_and_writes_fat_is_alone() {
    let graph = PackageGraph::load();
    let closure = graph.closure("alknet-fat");
    let ours = closure.iter().filter(|name| graph.members.contains(*name));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&String>::new());
    graph.forbid("alknet-fat", &["tokio", "nix"]);
}

#[test]
fn pid_1_knows_no_protocol() {
    let graph = PackageGraph::load();
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
                "alknet-metadata",
                "alknet-tls",
                "quinn",
                "rustls",
            ],
        );
    }
}

/// The loader for UEFI has it, where there is no allocator and no standard library.
#[test]
fn the_boot_state_depends_on_nothing() {
    let graph = PackageGraph::load();
    assert_eq!(graph.closure("alknet-boot-state"), BTreeSet::new());
    let sources = sources().iter();
    let own = sources.filter(|it| it.path.starts_with("crates/boot-state/src/"));
    let own: Vec<_> = own.collect();
    let library = own.iter().find(|it| it.path.ends_with("/lib.rs"));
    assert!(library.is_some_and(|it| it.text.contains("#![no_std]")));
    assert!(own.iter().all(|it| !it.text.contains("extern crate")));
}

/// PID 1 verifies updates, so what holds for PID 1 holds for them.
#[test]
fn updates_know_no_network() {
    let graph = PackageGraph::load();
    let closure = graph.closure("alknet-update");
    let ours: Vec<_> = closure
        .iter()
        .filter(|name| name.starts_with("alknet"))
        .collect();
    assert_eq!(ours, ["alknet-durable", "alknet-vault"]);
    graph.forbid("alknet-update", &["tokio", "rustls", "hyper"]);
}

/// PID 1 applies deltas, and the library that makes images compresses by their recipe.
#[test]
fn deltas_know_nothing_of_ours() {
    let graph = PackageGraph::load();
    let closure = graph.closure("alknet-delta");
    let ours = closure.iter().filter(|name| name.starts_with("alknet"));
    assert_eq!(ours.count(), 0);
    graph.forbid("alknet-delta", &["tokio", "rustls", "hyper"]);
}

/// Other parts stand on it: git, messages, SFTP, HTTP. Of the asynchronous runtime it uses the channels only.
#[test]
fn the_store_of_files_knows_no_network() {
    let graph = PackageGraph::load();
    let closure = graph.closure("alknet-store");
    let ours: Vec<_> = closure
        .iter()
        .filter(|name| name.starts_with("alknet"))
        .collect();
    assert_eq!(ours, ["alknet-durable", "alknet-objects"]);
    graph.forbid("alknet-store", &["http", "hyper", "quinn", "rustls"]);
    let sources = sources().iter();
    let own = sources.filter(|it| it.path.starts_with("crates/store/src/"));
    let own: Vec<_> = own.collect();
    assert!(own.len() > 20, "the folder is there");
    for part in ["tokio::net", "tokio::spawn", "tokio::task", "tokio::time"] {
        let with = own.iter().find(|it| it.text.contains(part));
        assert!(with.is_none(), "{part}: {:?}", with.map(|it| &it.path));
    }
}

/// The operations stand on the store and on the call protocol. The view over HTTP is one of their modules, behind a trait of core; SFTP is another package.
#[test]
fn the_operations_of_files_know_no_other_protocol() {
    let graph = PackageGraph::load();
    let closure = graph.closure("alknet-fs");
    let ours: Vec<_> = closure
        .iter()
        .filter(|name| name.starts_with("alknet"))
        .collect();
    let expected = [
        "alknet-call",
        "alknet-core",
        "alknet-durable",
        "alknet-objects",
        "alknet-store",
    ];
    assert_eq!(ours, expected);
    graph.forbid("alknet-fs", &["axum", "h3", "hyper", "quinn", "rustls"]);
}

/// It depends only on the vault, whose slots it answers for, and on libraries.
#[test]
fn the_tpm_knows_the_vault_and_nothing_else_of_ours() {
    let graph = PackageGraph::load();
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
    let graph = PackageGraph::load();
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

/// Uses `cargo tree`, because metadata also lists libraries that a feature would only configure.
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
    PackageGraph::load().forbid(
        "alknet",
        &[
            "alknet-bench",
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
    let closure = PackageGraph::load().closure("xtask");
    assert!(
        closure.is_empty(),
        "xtask must compile from nothing in seconds: {closure:?}"
    );
}
