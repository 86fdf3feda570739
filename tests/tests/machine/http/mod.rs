//! HTTP on the booted image: one machine serves clients of other authors, one after the other. Then attackers come, and
//! then the node hides from unknown peers.

mod attacks;
mod certificate;
mod clients;
mod files;
mod framing;
mod gateway;
#[path = "../../http/judges/generated.rs"]
mod generated;
mod guesses;
mod hidden;
mod page;
mod removals;
mod slow;
mod sockets;
mod unread;

use alknet_qemu::Nic;
use alknet_tests::{BootVariant, MachineNode, TestBench, WebNode};
use serde_json::json;

use attacks::MemoryWatcher;
use removals::Removed;
use slow::SlowRequests;
use unread::UnreadResponses;

/// A machine that speaks HTTP.
type Machine = WebNode<MachineNode>;

/// The configuration makes `node/info` a tool of its own for models, and lets pages of one site call. The static site
/// is the whole image: the data partition is sealed, so the test can put no file there. It answers under `localhost`, and
/// the page at the address.
const DOCUMENT: &str = "[http]\nenabled = true\nsite = \"/\"\npage = true\n\
                        [http.mcp]\ntools = [\"node/info\"]\n\
                        [http.cors]\norigins = [\"https://app.example.org\"]\n";

/// The only file of the image, which is large: the program itself.
const LARGE: &str = "/init";

/// Port of plain HTTP.
const HTTP_PORT: u16 = 80;

/// Versions over TCP: curl's option, and curl's name for the version of the answer.
const VERSIONS: [(&str, &str); 2] = [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")];

#[test]
fn a_booted_machine_serves_every_http_client() {
    let bench = TestBench::set_up();
    let nic = Nic::user().forward(HTTP_PORT);
    let removed = Removed::new();
    let machine = bench.machine(BootVariant::MicrovmErofs).nic(nic);
    let web = WebNode::boot(machine.config(removed.document(&bench)), DOCUMENT);

    // Memory that the node frees later hides the growth by an attack, so this is the figure of the start.
    let fresh = MemoryWatcher::new(&web).resident().expect("no attack yet");
    // These tests precede every test that makes the node grow.
    sockets::pings_whose_answers_are_not_read_are_not_kept(&web);
    files::a_large_file_is_not_read_before_it_is_sent(&web);
    // These requests wait for limits of up to a minute. The tests from here to the ends of these requests run beside
    // them.
    let mut unread = UnreadResponses::begin(&web);
    let mut slow = SlowRequests::begin(&web);

    gateway::every_path_answers(&web);
    gateway::a_caller_without_scope_gets_forbidden(&web);
    gateway::bodies_have_a_limit_to_the_byte(&bench, &web);
    gateway::events_come_as_they_happen(&web);
    gateway::a_ticket_streams_once(&web);
    gateway::port_80_is_closed(&web);

    clients::aioquic_speaks_http3(&web);
    clients::bodies_have_the_same_limit_over_http3(&web);
    clients::the_module_works_in_node(&web);
    clients::models_use_it(&web);
    generated::a_client_calls(&bench, &web);
    clients::tokens_are_made_listed_and_taken_back(&bench, &web);

    hidden::pages_of_others_may_what_is_configured(&web);

    page::a_link_lets_in_once(&bench, &web);
    let browser = page::a_browser_shows_the_machine(&bench, &web);
    page::a_browser_uses_it(browser, &web);

    // Clients that come from here on take the places of silent unknown peers.
    unread.end_of_unknown_clients();
    slow.heads_end(&web);
    attacks::bodies_cost_little_memory(&web, fresh);
    framing::what_does_not_end_is_ended(&web);
    sockets::are_bounded(&web);
    slow.end();
    unread.end(&bench, &web);

    let info = web.node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["node_restarts"], 0, "{info:#}");
    guesses::a_guesser_gets_retry_after_and_no_other_client_is_refused(&bench, &web);
    removed.reads_nothing_more(&web, || hidden::is_to_hide(&bench, &web));
    let token = web.admin.clone();
    page::a_link_restarts_the_machine(&bench, web);
    hidden::unknown_clients_see_one_and_the_same_nothing(&bench, &token);
}
