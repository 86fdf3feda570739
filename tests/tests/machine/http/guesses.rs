//! A client guesses tokens, from the network that every client of the machine is in.

use alknet_tests::{
    FAILED_LOGINS, TestBench, eventually, guesses_refuse_no_other_client, guesses_until_refused,
    http3, wrong_token,
};
use serde_json::{Value, json};

use super::Machine;

/// QEMU's network, which every client of the machine is in.
const NETWORK: &str = "10.0.2.0/24";
/// How long the node has to refuse guesses yet when the last checks begin, in seconds.
const LEFT_S: u64 = 30;

pub(super) fn a_guesser_gets_retry_after_and_no_other_client_is_refused(
    bench: &TestBench,
    web: &Machine,
) {
    guesses_refuse_no_other_client(bench, web, &web.target());
    // The node refuses guesses for a minute, of which this took a part, on a busy machine nearly all.
    eventually("guesses are refused for a while longer", || {
        let refused = guesses_until_refused(bench, web);
        let wait = refused.header("retry-after");
        let wait = wait.and_then(|wait| wait.parse::<u64>().ok());
        (wait >= Some(LEFT_S)).then_some(())
    });

    let bearer = |token: &str| json!({ "authorization": format!("Bearer {token}") });
    let search = |headers: Value| json!({ "method": "GET", "path": "/search", "headers": headers });
    let heard = http3(
        web.address(),
        &json!([
            search(bearer(&wrong_token())),
            { "method": "GET", "path": "/healthz" },
            search(bearer(&web.reader)),
            search(json!({})),
        ]),
    );
    let statuses: Vec<_> = heard.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [429, 200, 200, 401]);
    let wait = heard[0].headers["retry-after"].as_str();
    let wait = wait.and_then(|wait| wait.parse::<u64>().ok());
    assert!(
        wait.is_some_and(|wait| (1..=60).contains(&wait)),
        "{wait:?}"
    );

    let admin = bench.admin();
    let status = admin.run(admin.command(&["status", &web.node.target()]));
    assert_eq!(status.status, 1, "{status:?}");
    let told: Value = serde_json::from_str(&status.output).expect("JSON");
    let problems = &told["problems"];
    assert_eq!(problems[0]["code"], FAILED_LOGINS, "{problems}");
    assert!(problems.to_string().contains(NETWORK), "{problems}");
}
