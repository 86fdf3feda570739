//! Files that the configuration names and the node stores: uploaded with the command line, and with
//! curl in an archive of GNU tar. They are served to curl, replaced, and refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use alknet_tests::{CliOutput, Curl, TestBench, WebNode, eventually, whole_seconds};
use data_encoding::BASE64;
use serde_json::{Value, json};

/// A node whose site is stored.
const SITE: &str = "[http]\npage = false\nsite = \"store:/site/www\"\n";

/// Longest run of curl.
const CURL_WITHIN: Duration = Duration::from_secs(60);

/// Runs `alknet file` as the administrator.
fn file(bench: &TestBench, web: &WebNode, words: &[&str], paths: &[&Path]) -> CliOutput {
    let mut command = bench.admin().command(&["file", words[0]]);
    command.arg(web.node.target()).args(&words[1..]).args(paths);
    bench.admin().run(command)
}

/// A folder with a page that contains its number.
fn public(bench: &TestBench, number: usize) -> PathBuf {
    let folder = bench.path().join("public");
    fs::create_dir_all(folder.join("docs")).expect("the folder is ours");
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).expect("the folder is ours");
    };
    write("index.html", &format!("version {number}\n"));
    write("docs/index.html", "<h1>docs</h1>");
    write(".env", "secret");
    folder
}

fn problems(web: &WebNode) -> Vec<String> {
    let info = web.node.call("node/info", &Value::Null);
    let problems = info["problems"].as_array().cloned().unwrap_or_default();
    let codes = problems.iter().filter_map(|it| it["code"].as_str());
    codes.map(str::to_owned).collect()
}

#[test]
fn a_stored_site_is_served_and_replaced_whole() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, SITE);
    assert_eq!(web.curl("/", &[]).status, 404);
    assert!(problems(&web).contains(&"stored-file-missing".to_owned()));

    let folder = public(&bench, 0);
    let stored = file(&bench, &web, &["add", "site/www"], &[&folder]).json();
    assert_eq!(
        (
            &stored["files"],
            &stored["counts"],
            &stored["used_by"],
            &stored["kept"]
        ),
        (
            &json!(2),
            &json!("at once"),
            &json!(["http.site"]),
            &json!(true)
        ),
        "{stored:#}"
    );
    // The name that begins with a dot.
    assert_eq!(stored["left_out"], 1, "{stored:#}");
    assert_eq!(web.curl("/", &[]).text(), "version 0\n");
    assert_eq!(web.curl("/docs/", &[]).text(), "<h1>docs</h1>");
    assert_eq!(web.curl("/.env", &[]).status, 404);
    assert!(!problems(&web).contains(&"stored-file-missing".to_owned()));

    // Each reader gets one complete version, whichever it is.
    thread::scope(|scope| {
        let replaces = scope.spawn(|| {
            for number in 1..=5 {
                let folder = public(&bench, number);
                file(&bench, &web, &["add", "site/www"], &[&folder]).json();
            }
        });
        while !replaces.is_finished() {
            let page = web.curl("/", &[]);
            assert_eq!(page.status, 200);
            let text = page.text();
            let number = text
                .strip_prefix("version ")
                .and_then(|it| it.trim_end().parse().ok());
            assert!(number.is_some_and(|it: usize| it <= 5), "{text:?}");
        }
    });
    assert_eq!(web.curl("/", &[]).text(), "version 5\n");
    let listed = file(&bench, &web, &["show", "site/www"], &[]).json();
    let entries = &listed["files"][0]["entries"];
    assert_eq!(
        entries[1],
        json!({ "path": "index.html", "bytes": 10 }),
        "{listed:#}"
    );

    drop(web);
    let web = WebNode::start(&bench, SITE);
    assert_eq!(web.curl("/", &[]).text(), "version 5\n");
}

/// Packs names of a folder, as GNU tar does with these options.
fn tar(folder: &Path, options: &[&str], names: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(folder)
        .args(options)
        .args(["-cf", "-"])
        .args(names);
    let told = tar.output().expect("tar is installed");
    assert!(told.status.success(), "{told:?}");
    told.stdout
}

/// One step of storing, with curl.
fn step(web: &WebNode, input: &Value) -> Value {
    let call = json!({ "operation": "config/store-file", "input": input });
    web.post(&web.admin, "/call", &call.to_string()).json()
}

/// Sends an archive with curl. Returns the answer of the last step.
fn send(web: &WebNode, name: &str, archive: &[u8]) -> Value {
    let begun = step(web, &json!({ "name": name }));
    let upload = &begun["output"]["upload"];
    let bytes = BASE64.encode(archive);
    let added = step(
        web,
        &json!({ "upload": upload, "offset": 0, "bytes": bytes }),
    );
    assert_eq!(added["output"]["have"], archive.len(), "{begun} {added}");
    step(web, &json!({ "upload": upload, "commit": true }))
}

#[test]
fn an_archive_of_gnu_tar_is_stored_by_curl_and_never_beside_its_folder() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, SITE);
    let folder = public(&bench, 7);
    let names = ["./index.html", "./docs"];
    let done = send(&web, "site/www", &tar(&folder, &["--format=posix"], &names));
    assert_eq!(done["output"]["files"], 2, "{done:#}");
    assert_eq!(web.curl("/", &[]).text(), "version 7\n");

    let outside = ["--absolute-names", "--transform=s,^,../,"];
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).expect("the folder is ours");
    for (archive, words) in [
        (tar(&folder, &outside, &["index.html"]), "leads out"),
        (
            tar(
                &folder,
                &["--absolute-names", "--transform=s,^,/srv/,"],
                &["index.html"],
            ),
            "the root",
        ),
        (tar(&folder, &[], &["link"]), "no links"),
        (tar(&folder, &[], &[".env"]), "begins with a dot"),
        (
            tar(&folder, &[], &["index.html"])[..600].to_vec(),
            "breaks off",
        ),
    ] {
        let refused = send(&web, "site/www", &archive);
        let error = &refused["error"];
        assert_eq!(error["code"], "INVALID_INPUT", "{refused:#}");
        let said = error["message"].as_str().unwrap_or_default();
        assert!(said.contains(words), "{words}: {said}");
        assert_eq!(web.curl("/", &[]).text(), "version 7\n", "{words}");
    }
    let store = bench.path().join("host/state/files");
    assert!(
        !store.join("content/index.html").exists(),
        "nothing lies beside the site"
    );

    // What one caller started, no other continues, and no piece is sent twice.
    let begun = step(&web, &json!({ "name": "site/www" }));
    let upload = &begun["output"]["upload"];
    let other = web.node.try_call(
        "config/store-file",
        &json!({ "upload": upload, "commit": true }),
    );
    assert_eq!(other.code(), "NOT_FOUND");
    let gap = step(
        &web,
        &json!({ "upload": upload, "offset": 9, "bytes": "YQ==" }),
    );
    assert_eq!(gap["error"]["details"]["have"], 0, "{gap:#}");
}

#[test]
fn what_may_not_be_stored_or_removed_is_refused() {
    let bench = TestBench::new();
    let (guest, reader) = (bench.user("guest"), bench.user("reader"));
    let peer = format!(
        "[[peers]]\npeer_id = \"reader\"\nkeys = [\"{}\"]\nscopes = [\"node:read\", \"peer:list\"]\n{SITE}",
        reader.identity()
    );
    let web = WebNode::start(&bench, &peer);
    let target = web.node.target();
    let input = json!({ "name": "site/www" });
    for operation in [
        "config/store-file",
        "config/list-files",
        "config/remove-file",
    ] {
        let unknown_peer = guest.call(target, operation, &input, &[]).code();
        assert_eq!(unknown_peer, "UNAUTHENTICATED", "{operation}");
        let known = reader.call(target, operation, &input, &[]).code();
        assert_eq!(known, "FORBIDDEN", "{operation}");
        let call = json!({ "operation": operation, "input": input }).to_string();
        assert_eq!(
            web.post(&web.reader, "/call", &call).status,
            403,
            "{operation}"
        );
    }

    let folder = public(&bench, 1);
    file(&bench, &web, &["add", "site/www"], &[&folder]).json();
    file(&bench, &web, &["add", "site/old"], &[&folder]).json();
    let used = file(&bench, &web, &["remove", "site/www"], &[]);
    assert_eq!(used.code(), "CONFLICT");
    assert!(used.errors.contains("http.site"), "{used:?}");
    assert_eq!(web.curl("/", &[]).text(), "version 1\n");
    file(&bench, &web, &["remove", "site/old"], &[]).json();
    assert_eq!(
        file(&bench, &web, &["remove", "site/old"], &[]).code(),
        "NOT_FOUND"
    );

    let large = bench.path().join("large.pem");
    fs::write(&large, vec![b'x'; 300 << 10]).expect("the folder is ours");
    let refused = file(&bench, &web, &["add", "certificate/large"], &[&large]);
    assert_eq!(refused.code(), "QUOTA_EXCEEDED");
    let text = bench.path().join("forge.yaml");
    fs::write(&text, "openapi: 4.0.0\n").expect("the folder is ours");
    let refused = file(&bench, &web, &["add", "document/forge"], &[&text]);
    assert_eq!(refused.code(), "INVALID_INPUT");
    let listed = file(&bench, &web, &["list"], &[]).json();
    assert_eq!(
        listed["files"].as_array().map(Vec::len),
        Some(1),
        "{listed:#}"
    );

    let document = bench.path().join("next.toml");
    fs::write(&document, "[http]\nsite = \"store:/site/absent\"\n").expect("the folder is ours");
    let mut apply = bench.admin().command(&["config", "apply", "--dry-run"]);
    apply.arg(target).arg(&document);
    let tried = bench.admin().run(apply).json();
    assert_eq!(tried["warnings"][0]["id"], "http.site", "{tried:#}");
}

/// A self-signed certificate for `edge.example`, and its key.
fn certificate(bench: &TestBench, name: &str) -> (PathBuf, PathBuf) {
    let (chain, key) = (format!("{name}.pem"), format!("{name}.key"));
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=edge.example -days 9 \
                 -addext subjectAltName=DNS:edge.example";
    let mut openssl = Command::new("openssl");
    openssl
        .args(words.split_whitespace())
        .args(["-out", &chain, "-keyout", &key]);
    let made = openssl.current_dir(bench.path()).output();
    let made = made.expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    (bench.path().join(chain), bench.path().join(key))
}

#[test]
fn a_stored_certificate_is_served_and_its_key_is_never_shown() {
    let bench = TestBench::new();
    let (chain, key) = certificate(&bench, "edge");
    let (other, other_key) = certificate(&bench, "other");
    let web = WebNode::start(&bench, "");
    let wrong = file(
        &bench,
        &web,
        &["add", "certificate/edge"],
        &[&chain, &other_key],
    );
    assert_eq!(wrong.code(), "INVALID_INPUT");
    assert!(wrong.errors.contains("does not fit"), "{wrong:?}");
    let added = file(&bench, &web, &["add", "certificate/edge"], &[&chain, &key]);
    let shown = file(&bench, &web, &["show", "certificate/edge"], &[]);
    assert_eq!(shown.json()["files"][0]["names"], json!(["edge.example"]));
    let listed = file(&bench, &web, &["list"], &[]);
    for told in [&added, &shown, &listed, &wrong] {
        let all = [told.output.as_str(), told.errors.as_str()].concat();
        assert!(
            !all.contains("BEGIN") && !all.contains("PRIVATE"),
            "{told:?}"
        );
    }
    file(&bench, &web, &["add", "root/lab"], &[&chain]).json();

    drop(web);
    let config = "[tls]\nroots = \"store:/root/lab\"\nfiles = [{ chain = \"store:/certificate/edge\" }]\n\
                  [http]\nnames = [\"edge.example\"]\n";
    let web = WebNode::start(&bench, config);
    let port = web.address().port();
    let believed = |authority: &Path| {
        let (authority, within) = (authority.display().to_string(), whole_seconds(CURL_WITHIN));
        let found = format!("edge.example:{port}:127.0.0.1");
        let url = format!("https://edge.example:{port}/healthz");
        let fixed = ["--silent", "--max-time", &within, "--output", "/dev/null"];
        let asked = ["--cacert", &authority, "--resolve", &found, "--url", &url];
        Curl::new(&[&fixed[..], &asked].concat())
            .output()
            .status
            .success()
    };
    assert!(believed(&chain));
    assert!(!believed(&other));
    let wrong = [
        "tls-cert-reload-failed",
        "tls-roots-failed",
        "stored-file-missing",
    ];
    let said = problems(&web);
    assert!(
        !said.iter().any(|code| wrong.contains(&code.as_str())),
        "{said:?}"
    );
    let used = file(&bench, &web, &["remove", "root/lab"], &[]);
    assert_eq!(used.code(), "CONFLICT");
    assert!(used.errors.contains("tls.roots"), "{used:?}");
}

#[test]
fn a_stored_document_is_imported_from_the_next_start_on() {
    let bench = TestBench::new();
    let config = "[[http.import]]\nkind = \"openapi\"\nnamespace = \"forge\"\n\
                  document = \"store:/document/forge\"\nbase_url = \"https://forge.example/api\"\n";
    let web = WebNode::start(&bench, config);
    let codes = eventually("the import fails", || {
        Some(problems(&web)).filter(|codes| codes.contains(&"import-failed".to_owned()))
    });
    assert!(
        codes.contains(&"stored-file-missing".to_owned()),
        "{codes:?}"
    );
    let document = bench.path().join("forge.yaml");
    let text = "openapi: 3.1.0\npaths:\n  /repos:\n    get:\n      operationId: listRepos\n      responses:\n        \
                '200': { description: all of them }\n";
    fs::write(&document, text).expect("the folder is ours");
    let stored = file(&bench, &web, &["add", "document/forge"], &[&document]).json();
    assert_eq!(
        (&stored["operations"], &stored["counts"]),
        (&json!(1), &json!("from the next start")),
        "{stored:#}"
    );

    drop(web);
    let web = WebNode::start(&bench, config);
    eventually("the document is imported", || {
        let log = web.node.try_call("node/log", &json!({ "last": 1000 }));
        log.output.contains("imported forge").then_some(())
    });
    let codes = problems(&web);
    assert!(!codes.contains(&"import-failed".to_owned()), "{codes:?}");
}
