//! Documents as such: what is wrong with one is said with its place, all of it at once.

use super::*;

#[test]
fn an_empty_document_is_the_default() {
    for empty in ["", "\n", "# nothing\n", "\u{feff}", "[listen]\n[node]\n"] {
        assert_eq!(
            NodeConfig::parse(empty.as_bytes()),
            Ok(NodeConfig::default()),
            "{empty:?}"
        );
    }
}

#[test]
fn a_complete_document_is_read_as_serde_reads_it() {
    let config = NodeConfig::parse(COMPLETE.as_bytes()).expect("a correct document");
    let mut expected: NodeConfig = toml::from_str(COMPLETE).expect("a correct document");
    expected.network[1].matches = "52:54:00:ab:cd:ef".into();
    assert_eq!(config, expected);
    assert_eq!(config.listen.port, 8443);
    assert!(!config.peers[0].enabled);
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest_match() {
    let near = "did you mean 'admin_keys'?";
    assert_diagnostic(
        "[node]\nadmin_key = []\n",
        &["line 2, node.admin_key:", near],
    );
    assert_diagnostic("[node]\nadmin-keys = []\n", &[near]);
    assert_diagnostic("[lisen]\nport = 1\n", &["line 1", "'listen'"]);
    assert_diagnostic(
        "xyzzy = 1\n",
        &["known here: listen, node, credentials, network, peers"],
    );
}

#[test]
fn every_mistake_is_reported_at_once_in_the_order_of_the_document() {
    let errors = refused(
        "[listen]\nport = 0\naddrs = [\"::\", 5]\n[node]\nname = \"Edge\"\nadmin_keys = [\"ssh-ed25519 AAAA\"]\n\
         [[peers]]\npeer_id = \"admin\"\nkeys = []\nscopes = [\"\"]\n",
    );
    let places = [
        "line 2, listen.port:",
        "line 3, listen.addrs[1]:",
        "line 5, node.name:",
        "line 6, node.admin_keys[0]:",
        "line 8, peers[0].peer_id:",
        "line 9, peers[0].keys:",
        "line 10, peers[0].scopes[0]:",
    ];
    assert_eq!(errors.len(), places.len(), "{errors:#?}");
    for (error, place) in errors.iter().zip(places) {
        assert!(error.starts_with(place), "{error}");
    }
}

/// The paths of the mistakes of a document, where a check also finds one at each of these.
fn paths_of_mistakes(document: &str, found: &[&str]) -> Vec<String> {
    let found = |_: &NodeConfig| {
        let error = |path: &&str| ConfigError {
            path: (*path).to_owned(),
            line: None,
            what: String::new(),
            fix: String::new(),
        };
        found.iter().map(error).collect()
    };
    let mistakes = NodeConfig::mistakes(document.as_bytes(), found);
    mistakes.into_iter().map(|error| error.path).collect()
}

#[test]
fn what_a_check_finds_in_correct_values_comes_after_the_mistakes_of_the_document() {
    let found = ["http.import[0].document", "http.mcp.tools[1]", "http.site"];
    for (document, own) in [
        ("", None),
        ("tls.roots = \"roots.pem\"", Some("tls.roots")),
        ("http.sites = 1", Some("http.sites")),
    ] {
        let expected: Vec<_> = own.into_iter().chain(found).collect();
        assert_eq!(paths_of_mistakes(document, &found), expected, "{document}");
    }
    // The values behind a wrong one have lower numbers than in the document.
    let own = ["http.mcp.tools[0]"];
    let expected = [own[0], found[0], found[2]];
    let document = "http.mcp.tools = [\"info\", \"node/inof\"]";
    assert_eq!(paths_of_mistakes(document, &found), expected);
    // The names may mean something else in a document of a newer version.
    assert_eq!(paths_of_mistakes("version = 2", &found), ["version"]);
    let many = "[[peers]]\n".repeat(CONFIG_ERRORS_MAX);
    assert_eq!(paths_of_mistakes(&many, &found).len(), CONFIG_ERRORS_MAX);
}

#[test]
fn a_check_sees_the_correct_values_of_a_document_with_a_mistake() {
    let mut seen = None;
    let document = b"tls.roots = \"roots.pem\"\nhttp.site = \"/srv/www\"";
    let mistakes = NodeConfig::mistakes(document, |config| {
        seen = config.http.site.clone();
        Vec::new()
    });
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert_eq!(seen.as_deref(), Some("/srv/www"));
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    assert_diagnostic("listen = 1", &["expected a table", "found integer"]);
    assert_diagnostic("listen.port = \"443\"", &["expected a whole number"]);
    assert_diagnostic("node.name = 1", &["expected a string"]);
    assert_diagnostic("node.admin_keys = \"x\"", &["expected a list"]);
    assert_diagnostic("[node]\n[[listen]]", &["expected a table", "found array"]);
    assert_diagnostic(
        "[[peers]]\npeer_id = \"a\"\nkeys = [\"ed25519:1111111111111111111111111111111111111111111111111111111111111111\"]\nenabled = 1",
        &["expected true or false"],
    );
    assert_diagnostic("peers = [1]", &["peers[0]", "expected a table"]);
}

#[test]
fn documents_that_are_no_toml_say_where() {
    assert_diagnostic("[node]\nname = \n", &["line 2", "TOML"]);
    assert_diagnostic("#cloud-config\nhostname: x\n", &["line 1", "cloud-init"]);
    assert_diagnostic(
        "[node]\nname = \"a\"\nname = \"b\"\n",
        &["line 3", "duplicate key"],
    );
    let errors = NodeConfig::parse(b"a = 1\n\xff").expect_err("not UTF-8");
    assert_eq!(errors[0].line, Some(2));
    let full = vec![b'#'; CONFIG_BYTES_MAX];
    assert!(NodeConfig::parse(&full).is_ok());
    let long = vec![b'#'; CONFIG_BYTES_MAX + 1];
    let errors = NodeConfig::parse(&long).expect_err("too long");
    assert!(errors[0].to_string().contains("longer than 65536 bytes"));
}

#[test]
fn a_document_of_a_newer_version_is_refused_by_that_one_word() {
    for ok in ["", "version = 1\n"] {
        assert!(NodeConfig::parse(ok.as_bytes()).is_ok());
    }
    let key = format!("ed25519:{}", "ab".repeat(32));
    let newer = format!("version = 2\nshape = 5\n[node]\nadmin_keys = [\"{key}\"]\n");
    assert_diagnostic(
        &newer,
        &["line 1, version:", "newer than this program", "update"],
    );
    assert_eq!(NodeConfig::salvage(newer.as_bytes()).node.admin_keys, [key]);
    assert_diagnostic("version = 0", &["line 1, version:", "out of range"]);
    assert_diagnostic("version = \"1\"", &["expected a whole number"]);
}

#[test]
fn messages_are_bounded_in_number_and_each_is_one_line() {
    let many: String = (0..CONFIG_ERRORS_MAX * 3)
        .map(|n| format!("key{n} = 1\n"))
        .collect();
    let errors = refused(&many);
    assert_eq!(errors.len(), CONFIG_ERRORS_MAX);
    assert!(errors[CONFIG_ERRORS_MAX - 1].contains("101 more"));
    let nasty = format!(
        "node.name = \"\\u001b[2J\\n{}\"\n\"a\\nb\" = 1\n",
        "x".repeat(5000)
    );
    for error in refused(&nasty) {
        assert!(
            !error.contains(char::is_control) && error.len() < 400,
            "{error:?}"
        );
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for opening in ["[", "{a=", "[["] {
        let document = format!("listen = {}", opening.repeat(10_000));
        assert!(NodeConfig::parse(document.as_bytes()).is_err());
    }
    let dotted = format!("{}b = 1", "a.".repeat(20_000));
    assert!(NodeConfig::parse(dotted.as_bytes()).is_err());
}
