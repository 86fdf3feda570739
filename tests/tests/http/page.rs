//! The status page, with the command that opens it and with curl. `pictures.rs` tests it in a
//! browser.

use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallOptions};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::seconds;
use alknet_tests::{Curl, HostNode, TestBench};
use alknet_tls::NodeKey;
use serde_json::{Value, json};

/// The response to curl.
struct FetchedPage {
    status: u16,
    headers: String,
    body: String,
}

impl FetchedPage {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    /// The name and value of the cookie that was set.
    fn cookie(&self) -> &str {
        let cookie = self.header("set-cookie").unwrap_or_default();
        cookie.split(';').next().unwrap_or_default()
    }
}

/// Options, and then the address.
fn curl(arguments: &[&str]) -> FetchedPage {
    let wait = seconds(Duration::from_secs(60));
    let mut all = vec![
        "--silent",
        "--show-error",
        "--insecure",
        "--max-time",
        &wait,
        "--include",
    ];
    let (url, options) = arguments.split_last().expect("an address");
    all.extend(["--url", url]);
    all.extend(options);
    let text = Curl::new(&all).says();
    let (headers, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = headers
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    FetchedPage {
        status: status.expect("a status"),
        headers: headers.to_owned(),
        body: body.to_owned(),
    }
}

fn open(bench: &TestBench, node: &HostNode, more: &[&str]) -> String {
    let mut command = bench.admin().command(&["open", "--print", node.target()]);
    command.args(more);
    let answer = bench.admin().run(command).json();
    assert_eq!(answer["expires_in"], 60);
    answer["url"].as_str().expect("a link").to_owned()
}

fn origin(node: &HostNode) -> String {
    let (_, address) = node
        .target()
        .rsplit_once('@')
        .expect("a pin and an address");
    format!("https://{address}")
}

#[test]
fn a_link_lets_in_once_and_what_it_gives_is_good_for_the_page_alone() {
    let bench = TestBench::new();
    let node = bench.host();
    let origin = origin(&node);
    let unknown_peer = curl(&[&format!("{origin}/")]);
    assert_eq!(unknown_peer.status, 200);
    assert!(unknown_peer.body.contains("name=\"token\"") && !unknown_peer.body.contains("Peers"));

    let link = open(&bench, &node, &[]);
    assert!(
        link.starts_with(&format!("{origin}/status/enter/")),
        "{link}"
    );
    let entered = curl(&[&link]);
    assert_eq!(
        (entered.status, entered.header("location")),
        (303, Some("/"))
    );
    let cookie = entered.header("set-cookie").expect("a cookie").to_owned();
    assert!(cookie.starts_with("__Host-alknet="), "{cookie}");
    for word in ["Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    let again = curl(&[&link]);
    assert!(again.status == 410 && again.header("set-cookie").is_none());

    let cookie = format!("Cookie: {}", entered.cookie());
    let page = curl(&["--header", &cookie, &format!("{origin}/")]);
    assert_eq!(page.status, 200);
    let identity = node.call("node/info", &Value::Null)["identity"].to_string();
    assert!(
        page.body.contains(identity.trim_matches('"')),
        "{}",
        page.body
    );
    let policy = page.header("content-security-policy").unwrap_or_default();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));

    // Everywhere else the cookie has no effect.
    for path in ["/search", "/schema?operation=node/info", "/metrics", "/mcp"] {
        let got = curl(&["--header", &cookie, &format!("{origin}{path}")]);
        assert!(matches!(got.status, 401 | 404), "{path}: {}", got.status);
    }
    let call = json!({ "operation": "node/reboot" }).to_string();
    let json = "Content-Type: application/json";
    let url = format!("{origin}/call");
    let got = curl(&["--header", &cookie, "--header", json, "--data", &call, &url]);
    assert_eq!(got.status, 401, "{}", got.body);

    let leave = format!("{origin}/status/leave");
    let left = curl(&["--header", &cookie, "--request", "POST", &leave]);
    assert_eq!(left.status, 303);
    assert!(
        left.header("set-cookie")
            .is_some_and(|it| it.contains("Max-Age=0"))
    );
    let after = curl(&["--header", &cookie, &format!("{origin}/")]);
    assert!(after.body.contains("name=\"token\""));
}

#[test]
fn a_token_lets_in_until_it_is_taken_back() {
    let bench = TestBench::new();
    let node = bench.host();
    let (origin, admin) = (origin(&node), bench.admin());
    let mut command = admin.command(&["token", "make", node.target(), "--scope", "*"]);
    command.args(["--note", "the page"]);
    let made = admin.run(command).json();
    let form = format!("token={}", made["token"].as_str().expect("a token"));
    let enter = format!("{origin}/status/enter");
    let entered = curl(&["--data", &form, &enter]);
    assert_eq!(entered.status, 303, "{}", entered.body);
    let cookie = format!("Cookie: {}", entered.cookie());
    let page = || curl(&["--header", &cookie, &format!("{origin}/")]).body;
    assert!(page().contains("Peers"));
    let foreign = curl(&[
        "--data",
        &form,
        "--header",
        "Origin: https://evil.example",
        &enter,
    ]);
    assert!(foreign.status == 403 && foreign.header("set-cookie").is_none());
    node.call("token/revoke", &json!({ "key_id": made["key_id"] }));
    assert!(!page().contains("Peers"));
    assert_eq!(curl(&["--data", &form, &enter]).status, 403);
}

/// The link is requested over a connection with another key, and used before the token is revoked.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_of_a_token_led_to_ends_with_the_token() {
    let bench = TestBench::new();
    let node = bench.host();
    let (origin, admin) = (origin(&node), bench.admin());
    let made = admin.run(admin.command(&["token", "make", node.target(), "--scope", "*"]));
    let made = made.json();
    let dialer = EndpointDialer::new(Some(NodeKey::generate().expect("the system has entropy")));
    let target: Target = node.target().parse().expect("a target");
    let connection = dialer
        .dial(&target, ALPN)
        .await
        .expect("every client may connect");
    let client = CallClient::without_operations().attach(connection, None);
    let options = CallOptions {
        auth_token: made["token"].as_str().map(str::to_owned),
        ..CallOptions::default()
    };
    let link = client
        .call_with("node/page-ticket", &json!({}), &options)
        .await;
    let link = link.expect("it is an administrator's");
    let path = link.value()["path"].as_str().expect("a path");
    let entered = curl(&[&format!("{origin}{path}")]);
    assert_eq!(entered.status, 303, "{}", entered.body);
    let cookie = format!("Cookie: {}", entered.cookie());
    let page = || curl(&["--header", &cookie, &format!("{origin}/")]).body;
    assert!(page().contains("Peers"));
    node.call("token/revoke", &json!({ "key_id": made["key_id"] }));
    let after = page();
    assert!(
        after.contains("name=\"token\"") && !after.contains("Peers"),
        "{after}"
    );
}

#[test]
fn what_a_link_is_to_do_is_asked_first_and_the_host_says_it_is_no_machine() {
    let bench = TestBench::new();
    let node = bench.host();
    let link = open(&bench, &node, &["--action", "reboot"]);
    let asked = curl(&[&link]);
    assert!(asked.status == 200 && asked.body.contains("Restart the machine?"));
    // The form leads back to the page where it was shown.
    let path = &link[origin(&node).len()..];
    assert!(asked.body.contains(&format!("action=\"{path}\"")));
    let done = curl(&["--data", "", &link]);
    assert!(
        done.status == 503 && done.body.contains("ordinary host"),
        "{}",
        done.body
    );
    assert_eq!(curl(&["--data", "", &link]).status, 410);
}

#[test]
fn with_stealth_only_a_link_opens_the_page() {
    let bench = TestBench::new();
    let node = bench.host_with("[http]\nstealth = true\npage = true\n");
    let origin = origin(&node);
    let decoy = curl(&[&format!("{origin}/nothing/here")]);
    for path in [
        "/",
        "/status/enter/x",
        "/status/style.css",
        "/status/events",
    ] {
        let got = curl(&[&format!("{origin}{path}")]);
        assert_eq!(
            (got.status, &got.body),
            (decoy.status, &decoy.body),
            "{path}"
        );
    }
    let entered = curl(&[&open(&bench, &node, &[])]);
    assert_eq!(entered.status, 303);
    let cookie = format!("Cookie: {}", entered.cookie());
    for path in ["/", "/status/style.css"] {
        let got = curl(&["--header", &cookie, &format!("{origin}{path}")]);
        assert_eq!(got.status, 200, "{path}");
    }
    // A link to a question asks first, and then acts. A used link has no effect.
    let link = open(&bench, &node, &["--action", "reboot"]);
    let asked = curl(&[&link]);
    assert!(asked.status == 200 && asked.body.contains("Restart the machine?"));
    let done = curl(&["--data", "", &link]);
    assert!(
        done.status == 503 && done.body.contains("ordinary host"),
        "{}",
        done.body
    );
    let used = curl(&["--data", "", &link]);
    assert_eq!((used.status, &used.body), (decoy.status, &decoy.body));
}

/// The author of a site has scripts in it, and one that a browser registers for the whole origin.
#[test]
fn a_site_shares_no_origin_with_the_page() {
    let bench = TestBench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir_all(folder.join("status/enter")).expect("room");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("room");
    write(
        "index.html",
        "<script>navigator.serviceWorker.register('/sw.js')</script>",
    );
    write("sw.js", "onfetch = event => {}");
    write("status/live.js", "the site's");
    let site = folder.display();
    for more in ["", "decoy = \"site\"\n", "stealth = true\n"] {
        let http = format!(
            "[http]\npage = true\nsite = \"{site}\"\nnames = [\"www.example.org\"]\n{more}"
        );
        let node = bench.host_with(&http);
        let origin = origin(&node);
        let named = |name: &str, path: &str| {
            let host = format!("Host: {name}");
            curl(&["--header", &host, &format!("{origin}{path}")])
        };
        let link = open(&bench, &node, &[]);
        assert!(
            link.starts_with(&format!("{origin}/status/enter/")),
            "{link}"
        );
        let entered = curl(&[&link]);
        assert_eq!(entered.status, 303, "{more}");
        let cookie = format!("Cookie: {}", entered.cookie());
        let page = curl(&["--header", &cookie, &format!("{origin}/")]);
        assert!(page.status == 200 && page.body.contains("Peers"), "{more}");
        // At the address of the page nothing is the site's.
        for path in ["/sw.js", "/index.html", "/status/live.js", "/nonsense"] {
            let told = curl(&["--header", &cookie, &format!("{origin}{path}")]);
            let is_site = told.body.contains("serviceWorker") || told.body.contains("onfetch");
            assert!(
                !is_site && !told.body.contains("the site's"),
                "{more} {path}"
            );
            assert!(
                told.status == 404 || path == "/status/live.js",
                "{more} {path}"
            );
        }
        // Under a name nothing is the page's, with its session and without.
        for name in ["www.example.org", "localhost"] {
            let found = named(name, "/sw.js");
            assert_eq!(
                (found.status, found.body.as_str()),
                (200, "onfetch = event => {}")
            );
            let first = named(name, "/");
            assert!(
                first.status == 200 && first.body.contains("serviceWorker"),
                "{more}"
            );
            assert_eq!(named(name, "/status/live.js").body, "the site's");
            let host = format!("Host: {name}");
            let with = curl(&[
                "--header",
                &host,
                "--header",
                &cookie,
                &format!("{origin}/status/events"),
            ]);
            assert!(!with.body.contains("Peers") && with.header("set-cookie").is_none());
            let fresh = open(&bench, &node, &[]);
            let ticket = fresh.strip_prefix(&origin).expect("a path");
            let told = named(name, ticket);
            assert!(
                told.status != 303 && told.header("set-cookie").is_none(),
                "{more}"
            );
        }
    }
}
